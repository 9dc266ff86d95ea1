#!/bin/sh
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
#
# Dumps every database: the lines of /work/dump.list are
#     store <tab> host <tab> port <tab> database <tab> user <tab> revision
# and each becomes /work/backup/<store>.dump, beside <store>.rows, how many rows each table has, <store>.schemas, and
# <store>.locations, where the artifacts of its models are.
# Before an upgrade the list is of the databases that are behind, and without it there is nothing to do. With
# MLFLOW_BACKUP_TARGETS, lines without a revision, the list is made of all that there are.
#
# Environment: PGPASSWORD, and MLFLOW_BACKUP_SCRATCH_MIB, how large the dumps may become together.
set -eu
. "$(dirname "$0")/postgres.sh"
advice=

progress() {
    limited "$1"
}

# version_tables: those that may name the revision; the first one that is there counts.
version_tables() {
    case $store in
        auth) printf 'alembic_version_auth alembic_version' ;;
        *) printf 'alembic_version' ;;
    esac
}

# present: sets answer to the revision that the database of take() is at; empty for one without MLflow's tables.
present() {
    for table in $(version_tables); do
        ask "SELECT to_regclass('$table') IS NOT NULL"
        if [ "$answer" = t ]; then
            ask "SELECT string_agg(version_num, ', ' ORDER BY version_num) FROM $table"
            return
        fi
    done
    # The users' database of before MLflow 3.6 may have no version table: there was one revision only.
    ask "SELECT CASE WHEN '$store' = 'auth' AND to_regclass('users') IS NOT NULL THEN '8606fa83a998' ELSE '' END"
}

# find_all: makes the list. A database without users is not in it, as before an upgrade.
find_all() {
    printf '%s' "$MLFLOW_BACKUP_TARGETS" > "$work/targets"
    : > "$work/dump.list"
    while IFS= read -r line <&3; do
        take "$line"
        reach
        present
        if [ -n "$answer" ]; then
            printf '%s\t%s\n' "$line" "$answer" >> "$work/dump.list"
        elif [ "$store" = auth ]; then
            say "$label is empty"
        else
            fail "$REFUSED" "$label has no table alembic_version, so there is nothing of MLflow in it to back up; \
expected a database that site.yml has set up"
        fi
    done 3< "$work/targets"
}

# The artifacts that have to be there, as far as the tables of this release tell.
LOCATIONS="
SELECT 'SELECT artifact_location FROM logged_models WHERE lifecycle_stage <> ''deleted'' AND status = 2'
WHERE to_regclass('logged_models') IS NOT NULL
UNION ALL
SELECT 'SELECT coalesce(nullif(storage_location, ''''), source) FROM model_versions
    WHERE coalesce(current_stage, '''') <> ''Deleted_Internal'''
FROM pg_attribute WHERE attrelid = to_regclass('model_versions') AND attname = 'storage_location'"

# descriptor: that of the input of the session that hold() has opened.
descriptor() {
    case $store in
        tracking) printf 4 ;;
        registry) printf 5 ;;
        auth) printf 6 ;;
        *) fail 2 "expected a store tracking, registry or auth, got $store" ;;
    esac
}

tell_session() {
    eval "printf '%s\n' \"\$1\" >&$(descriptor)"
}

# hold: opens a session that keeps the database of take() as it is now, for the dump and for the count.
hold() {
    files=$directory/$store
    rm -f "$files.in"
    mkfifo "$files.in"
    psql --no-psqlrc --no-password --quiet --tuples-only --no-align --field-separator="$tab" \
        --set=ON_ERROR_STOP=1 < "$files.in" > "$files.out" 2> "$files.err" &
    session=$!
    printf '%s' "$session" > "$files.pid"
    eval "exec $(descriptor)> \"\$files.in\""
    tell_session "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
\\o '$files.snapshot'
SELECT pg_export_snapshot();
\\o
\\echo held"
    until grep -qx held "$files.out"; do
        if ! kill -0 "$session" 2> /dev/null; then
            explain "$(cat "$files.err")"
            fail "$code" "$label could not be dumped: $words"
        fi
        sleep 0.1
    done
}

# count: has the session write down what it sees, and ends it.
count() {
    files=$directory/$store
    tell_session "\\o '$files.rows'
$COUNT \\gexec
\\o '$files.schemas'
SELECT s FROM unnest(current_schemas(false)) AS s;
\\o '$files.locations'
$LOCATIONS \\gexec
\\q"
    eval "exec $(descriptor)>&-"
    if ! follow "$(cat "$files.pid")" "counting the rows of $label"; then
        explain "$(cat "$files.err")"
        fail "$code" "the rows of $label could not be counted: $words"
    fi
    sort -o "$files.rows" "$files.rows"
}

dump() {
    # Where MLflow's tables may be. A schema of somebody else may not even be readable.
    each_line --schema= "SELECT format('\"%s\"', replace(s, '\"', '\"\"')) FROM unnest(current_schemas(false)) AS s"
    eval "set -- $answer"
    ask 'SELECT pg_size_pretty(pg_database_size(current_database()))'
    say "dumping $label ($answer), revision $revision"
    pg_dump --format=custom --no-password --lock-wait-timeout=30000 --snapshot="$(cat "$directory/$store.snapshot")" \
        --file="$file" "$@" 2> "$work/stderr" &
    if ! follow $! "dumping $label"; then
        explain "$(cat "$work/stderr")"
        fail "$code" "$label could not be dumped: $words"
    fi
    count
}

# The dump has to be readable, and to have what tells that it is of MLflow. An auth database of before MLflow 3.6 may
# have no version table of its own.
check() {
    case $store in
        auth) tables='alembic_version_auth|alembic_version|users' ;;
        *) tables='alembic_version' ;;
    esac
    if ! pg_restore --list "$file" > "$work/contents" 2> "$work/stderr"; then
        fail "$REFUSED" "the dump of $label cannot be read: $(cat "$work/stderr")"
    fi
    if ! grep -Eq " TABLE DATA .* ($tables) " "$work/contents"; then
        fail "$REFUSED" "the dump of $label has no table $tables, so it is none of MLflow's $store store"
    fi
    if [ "$(megabytes)" -ge "$limit" ]; then
        too_large
    fi
    say "dumped $label: $(wc -c < "$file") bytes, $(grep -c ' TABLE DATA ' "$work/contents") tables"
}

# same_database: the store whose dump is of this database already; MLflow 3.6 and later can share one.
same_database() {
    while IFS=$tab read -r other host port database _user _revision; do
        if [ "$other" = "$store" ]; then
            return
        fi
        if [ "$host:$port/$database" = "$PGHOST:$PGPORT/$PGDATABASE" ]; then
            printf '%s' "$other"
            return
        fi
    done < "$work/dump.list"
}

# A session that has ended is told of by its own words.
trap '' PIPE
if [ -n "${MLFLOW_BACKUP_TARGETS:-}" ]; then
    find_all
fi
if [ ! -s "$work/dump.list" ]; then
    say 'nothing to back up: no database with data in it is behind'
    exit 0
fi
mkdir -p "$directory"
# All are held before the first one is dumped: so they are of one moment.
while IFS= read -r line <&3; do
    take "$line"
    reach
    if [ -z "$(same_database)" ]; then
        hold
    fi
done 3< "$work/dump.list"
while IFS= read -r line <&3; do
    take "$line"
    file=$directory/$store.dump
    other=$(same_database)
    if [ -n "$other" ]; then
        say "$label is the $other database too"
        for part in dump rows schemas locations; do
            ln -f "$directory/$other.$part" "$directory/$store.$part"
        done
    else
        dump
    fi
    check
done 3< "$work/dump.list"
