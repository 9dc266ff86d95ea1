#!/bin/sh
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
#
# Restores what dump.sh has dumped into a PostgreSQL of its own, which nobody else reaches and which ends with this
# program, and compares it with what there was in the dump's snapshot: each table's rows, and the revision. /work/checked
# says that it has.
#
# Environment: MLFLOW_BACKUP_SCRATCH_MIB, how large the dumps and a database may become together.
set -eu
. "$(dirname "$0")/postgres.sh"
scratch=$work/scratch
advice=', or mlflow_backup_check: false'

progress() {
    limited "$1"
}

# start: the server. Nothing of it has to outlive the pod.
start() {
    rm -rf "$scratch"
    mkdir -p "$scratch"
    if ! initdb --pgdata="$scratch/data" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync \
        > "$work/stdout" 2> "$work/stderr"; then
        fail "$REFUSED" "the check of the dumps cannot start a PostgreSQL of its own: $(cat "$work/stderr")"
    fi
    postgres -D "$scratch/data" -c listen_addresses= -c unix_socket_directories="$scratch" -c fsync=off \
        -c full_page_writes=off -c synchronous_commit=off -c wal_level=minimal -c max_wal_senders=0 \
        -c max_wal_size=256MB -c shared_buffers=64MB -c max_connections=10 -c dynamic_shared_memory_type=mmap \
        -c max_parallel_maintenance_workers=0 -c autovacuum=off > "$scratch/log" 2>&1 &
    server=$!
    tries=0
    until query 'SELECT 1' > /dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -ge 300 ] || ! kill -0 "$server" 2> /dev/null; then
            fail "$REFUSED" "the check of the dumps cannot start a PostgreSQL of its own: $(tail -n 3 "$scratch/log")"
        fi
        sleep 0.2
    done
}

# differs TEXT: a dump that is not what it should be.
differs() {
    fail "$REFUSED" "the dump of $label is not what was dumped: $1"
}

# scratch_query DATABASE STATEMENT: sets answer.
scratch_query() {
    answer=$(PGDATABASE=$1 query "$2" 2> "$work/stderr") || differs "$(cat "$work/stderr")"
}

verify() {
    say "checking the dump of $label"
    PGHOST=$scratch PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
    scratch_query postgres 'CREATE DATABASE scratch TEMPLATE template0'
    path= statements=
    set --
    while IFS= read -r schema; do
        name=\"$(printf '%s' "$schema" | sed 's/"/""/g')\"
        statements="${statements}CREATE SCHEMA IF NOT EXISTS $name;"
        path=${path:+$path, }$name
        set -- "$@" "--schema=$schema"
    done < "$directory/$store.schemas"
    scratch_query scratch "$statements"
    pg_restore --exit-on-error --no-owner --no-privileges --no-comments --dbname=scratch "$@" \
        "$directory/$store.dump" 2> "$work/stderr" &
    if ! follow $! "checking the dump of $label"; then
        differs "$(cat "$work/stderr")"
    fi
    # From a file, as \gexec is no SQL.
    printf 'SET search_path TO %s;\n%s \\gexec\n' "$path" "$COUNT" > "$work/count.sql"
    PGDATABASE=scratch psql --no-psqlrc --quiet --tuples-only --no-align --field-separator="$tab" \
        --set=ON_ERROR_STOP=1 --file="$work/count.sql" > "$work/counted" 2> "$work/stderr" ||
        differs "$(cat "$work/stderr")"
    sort -o "$work/counted" "$work/counted"
    if ! cmp -s "$work/counted" "$directory/$store.rows"; then
        differs "restored, it has other rows: $(diff "$directory/$store.rows" "$work/counted" | grep '^[<>]' |
            head -n 6 | tr "$tab" ' ' | tr '\n' ';')"
    fi
    check_revision
    scratch_query postgres 'DROP DATABASE scratch'
    say "checked the dump of $label: $(awk -F "$tab" '{ rows += $2 } END { print NR " tables, " rows + 0 " rows" }' \
        "$work/counted")"
}

check_revision() {
    case $store in
        auth) tables='alembic_version_auth alembic_version' ;;
        *) tables=alembic_version ;;
    esac
    for table in $tables; do
        if cut -f 1 "$work/counted" | grep -q "\\.$table\$"; then
            scratch_query scratch "SET search_path TO $path;
                SELECT string_agg(version_num, ', ' ORDER BY version_num) FROM $table"
            if [ "$answer" != "$revision" ]; then
                differs "it is of revision $answer, expected $revision"
            fi
            return
        fi
    done
}

if [ ! -s "$work/dump.list" ]; then
    say 'nothing to check: no database was dumped'
    exit 0
fi
server=
trap 'if [ -n "$server" ]; then kill -QUIT "$server" 2> /dev/null || :; fi' EXIT
label='the scratch database'
PGHOST=$scratch PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
export PGHOST PGPORT PGUSER PGDATABASE
start
while IFS= read -r line <&3; do
    take "$line"
    verify
done 3< "$work/dump.list"
kill -QUIT "$server" 2> /dev/null || :
wait "$server" 2> /dev/null || :
server=
rm -rf "$scratch"
: > "$work/checked"
