#!/bin/sh
# Makes the database cluster on the first start, then becomes PostgreSQL. A first start that was killed half way is
# begun again: PG_VERSION, the sign of a complete data directory, comes last.
set -eu

mkdir -p "$PGDATA"
if [ "$(id -u)" = 0 ]; then
    chown postgres:postgres "$PGDATA"
    chmod 0700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

if [ "${1:-}" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    : "${POSTGRES_PASSWORD:?must be set for the first start}"
    chmod 0700 "$PGDATA"
    new="$PGDATA/.new"
    # What our own killed attempt left, and nothing else: a directory with other content is somebody's data.
    if [ -e "$PGDATA/.incomplete" ]; then
        find "$PGDATA" -mindepth 1 -maxdepth 1 ! -name .incomplete ! -name lost+found -exec rm -rf {} +
    fi
    rm -rf "$new"
    # A file instead of an argument: arguments are public in /proc.
    password=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" > "$password"
    initdb --pgdata="$new" --username="${POSTGRES_USER:-postgres}" --pwfile="$password" \
        --auth-local=scram-sha-256 --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --data-checksums
    rm -f "$password"
    echo "host all all all scram-sha-256" >> "$new/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$new/postgresql.conf"
    database=${POSTGRES_DB:-${POSTGRES_USER:-postgres}}
    if [ "$database" != postgres ]; then
        # The single-user mode needs no password and no server that could be reached meanwhile.
        quoted=$(printf %s "$database" | sed 's/"/""/g')
        echo "CREATE DATABASE \"$quoted\"" | postgres --single -D "$new" postgres > /dev/null
    fi
    touch "$PGDATA/.incomplete"
    find "$new" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv -t "$PGDATA" {} +
    mv "$new/PG_VERSION" "$PGDATA/PG_VERSION"
    rm -rf "$new" "$PGDATA/.incomplete"
fi
exec "$@"
