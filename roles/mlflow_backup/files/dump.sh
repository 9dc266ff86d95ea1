#!/bin/sh
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
#
# Dumps every database before an upgrade: the lines of /work/dump.list are
#     store <tab> host <tab> port <tab> database <tab> user <tab> revision
# and each becomes /work/backup/<store>.dump. Without the list there is nothing to do.
#
# Environment: PGPASSWORD, and MLFLOW_BACKUP_SCRATCH_MIB, how large the dumps may become together.
set -eu
. "$(dirname "$0")/postgres.sh"

directory=$work/backup
limit=${MLFLOW_BACKUP_SCRATCH_MIB:?expected a number of MiB}

megabytes() {
    du -sm "$directory" | cut -f 1
}

too_large() {
    fail "$REFUSED" "the dumps take more than the $limit MiB of mlflow_backup_scratch_size; expected a larger size"
}

# A volume that becomes too large would have the whole pod evicted, without a word.
progress() {
    used=$(megabytes)
    say "$1, $used MiB"
    if [ "$used" -ge "$limit" ]; then
        kill "$child"
        too_large
    fi
}

dump() {
    # Where MLflow's tables may be. A schema of somebody else may not even be readable.
    each_line --schema= "SELECT format('\"%s\"', replace(s, '\"', '\"\"')) FROM unnest(current_schemas(false)) AS s"
    eval "set -- $answer"
    ask 'SELECT pg_size_pretty(pg_database_size(current_database()))'
    say "dumping $label ($answer), revision $revision"
    pg_dump --format=custom --no-password --lock-wait-timeout=30000 --file="$file" "$@" 2> "$work/stderr" &
    if ! follow $! "dumping $label"; then
        explain "$(cat "$work/stderr")"
        fail "$code" "$label could not be dumped: $words"
    fi
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

if [ ! -s "$work/dump.list" ]; then
    say 'nothing to back up: no database with data in it is behind'
    exit 0
fi
mkdir -p "$directory"
while IFS= read -r line <&3; do
    take "$line"
    file=$directory/$store.dump
    reach
    other=$(same_database)
    if [ -n "$other" ]; then
        say "$label is the $other database too"
        ln -f "$directory/$other.dump" "$file"
    else
        dump
    fi
    check
done 3< "$work/dump.list"
