#!/bin/sh
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
#
# Brings databases back to a backup, each in one transaction: all of it, or nothing of the database is changed.
#
#     restore.sh check      can every database of MLFLOW_BACKUP_TARGETS be used, by these tools? Changes nothing
#     restore.sh restore    restore the lines of /work/restore.list from /work/backup/<store>.dump
#
# The lines are those of dump.list (see dump.sh); a revision - means that the database was empty.
# /work/roots, if it is there, has the root of the artifacts in the backup, and in the environment, a line each.
# Environment: PGPASSWORD, and MLFLOW_BACKUP_RUNTIME_ROLE, the role of the servers, which gets rights on the data.
# MLFLOW_BACKUP_INTO, if the backup is another environment's: the users stay, and who is told what they may use then.
set -eu
. "$(dirname "$0")/postgres.sh"

# What comes before the dump's own statements. The number is the advisory lock of schema upgrades.
before() {
    cat <<'EOF'
BEGIN;
SET LOCAL lock_timeout = '10s';
SET LOCAL statement_timeout = 0;
SELECT pg_advisory_xact_lock(120312342278007);
DO $do$
DECLARE
    mine constant oid[] := ARRAY(SELECT oid FROM pg_namespace WHERE nspname = ANY(current_schemas(false)));
    others text;
    statement text;
BEGIN
    SELECT string_agg(format('%s of role %s', oid::regclass, pg_get_userbyid(relowner)), ', ') INTO others
    FROM pg_class c
    WHERE relnamespace = ANY(mine) AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND NOT pg_has_role(relowner, 'USAGE')
        AND NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');
    IF others IS NOT NULL THEN
        RAISE EXCEPTION 'the database has %, which % may not replace; give or move them away first', others, current_user;
    END IF;
    -- Each kind in one statement: then foreign keys between the tables do not matter. Without CASCADE: what is outside,
    -- such as somebody's view of a table in another schema, is not taken along; it ends the restore, and is named. What
    -- an extension brought stays.
    FOR statement IN
        WITH objects AS (
            SELECT 'pg_class'::regclass AS catalog, c.oid, oid::regclass::text AS name,
                CASE relkind WHEN 'v' THEN 1 WHEN 'm' THEN 2 WHEN 'S' THEN 5 WHEN 'f' THEN 4 ELSE 3 END AS step,
                CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                    WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind
            FROM pg_class c
            WHERE relnamespace = ANY(mine) AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND NOT relispartition
                -- A sequence that a column owns goes with its table.
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE relkind = 'S'
                    AND d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i'))
            UNION ALL
            SELECT 'pg_proc'::regclass, oid, oid::regprocedure::text, 6, 'ROUTINE'
            FROM pg_proc WHERE pronamespace = ANY(mine) AND pg_has_role(proowner, 'USAGE')
            UNION ALL
            SELECT 'pg_type'::regclass, t.oid, format_type(t.oid, NULL), 7,
                CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END
            FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
            WHERE typnamespace = ANY(mine) AND pg_has_role(typowner, 'USAGE')
                AND (typtype IN ('d', 'e', 'r') OR c.relkind = 'c')
        )
        SELECT format('DROP %s %s', kind, string_agg(name, ', ')) FROM objects o
        WHERE NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = o.catalog AND d.objid = o.oid AND d.deptype = 'e')
        GROUP BY step, kind ORDER BY step, kind
    LOOP
        EXECUTE statement;
    END LOOP;
END
$do$;
EOF
}

# What comes after them: without it there is no COMMIT, and the database stays as it was. The rights are those that the
# schema program grants after an upgrade.
after() {
    cat <<'EOF'
RESET search_path;
SELECT set_config('mlflow_backup.revision', :'revision', true), set_config('mlflow_backup.tables', :'tables', true),
    set_config('mlflow_backup.role', :'role', true), set_config('mlflow_backup.old_root', :'old_root', true),
    set_config('mlflow_backup.new_root', :'new_root', true);
DO $do$
DECLARE
    wanted constant text := current_setting('mlflow_backup.revision');
    tables constant text[] := string_to_array(current_setting('mlflow_backup.tables'), ' ');
    servers constant text := current_setting('mlflow_backup.role');
    old_root constant text := current_setting('mlflow_backup.old_root');
    new_root constant text := current_setting('mlflow_backup.new_root');
    -- Where MLflow keeps the addresses of artifacts.
    places constant text[] := ARRAY['experiments.artifact_location', 'runs.artifact_uri', 'trace_tags.value',
        'logged_models.artifact_location', 'model_versions.source', 'model_versions.storage_location'];
    found text;
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        IF found IS NULL AND to_regclass(name) IS NOT NULL THEN
            EXECUTE format('SELECT string_agg(version_num, '', '' ORDER BY version_num) FROM %I', name) INTO found;
        END IF;
    END LOOP;
    -- The users' database of before MLflow 3.6 may have no version table: there was one revision only.
    IF found IS NULL AND 'alembic_version_auth' = ANY(tables) AND to_regclass('users') IS NOT NULL THEN
        found := '8606fa83a998';
    END IF;
    IF coalesce(found, '-') <> wanted THEN
        RAISE EXCEPTION 'the dump is of revision %, expected %', coalesce(found, 'none'), wanted;
    END IF;
    FOREACH name IN ARRAY places LOOP
        IF old_root <> '' AND EXISTS (SELECT FROM pg_attribute
            WHERE attrelid = to_regclass(split_part(name, '.', 1)) AND attname = split_part(name, '.', 2)) THEN
            EXECUTE format('UPDATE %1$I SET %2$I = $2 || substr(%2$I, length($1) + 1) WHERE left(%2$I, length($1)) = $1',
                split_part(name, '.', 1), split_part(name, '.', 2)) USING old_root, new_root;
        END IF;
    END LOOP;
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I', current_schema(), servers);
    EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I TO %I', current_schema(), servers);
    FOREACH name IN ARRAY ARRAY['alembic_version', 'alembic_version_auth'] LOOP
        IF to_regclass(name) IS NOT NULL THEN
            EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %I FROM %I', name, servers);
        END IF;
    END LOOP;
END
$do$;
COMMIT;
\echo restored
ANALYZE;
EOF
}

# dumped ARGUMENTS: the dump as SQL. An older server does not know one setting that newer tools write at the top.
dumped() {
    if [ "$revision" != - ]; then
        { pg_restore --file=- "$@" "$work/backup/$store.dump" || : > "$work/unreadable"; } |
            sed '1,40{/^SET transaction_timeout = 0;$/d;}'
    fi
}

# blockers: which sessions use the database.
blockers() {
    query "SELECT string_agg(format('pid %s, user %s, %s', pid, usename, coalesce(state, 'state not visible')), '; ')
        FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()" 2> /dev/null || :
}

restore() {
    case $store in
        auth) tables='alembic_version_auth alembic_version' ;;
        *) tables='alembic_version' ;;
    esac
    # The objects alone: schemas, extensions, rights and comments on them stay as they are.
    each_line --schema= 'SELECT s FROM unnest(current_schemas(false)) AS s'
    eval "set -- $answer"
    say "restoring $label to revision $revision"
    rm -f "$work/unreadable"
    {
        before
        dumped --no-owner --no-privileges --no-comments "$@"
        [ -e "$work/unreadable" ] || after
    } 2> "$work/reading" | psql --no-psqlrc --no-password --quiet --output=/dev/null \
        --set=ON_ERROR_STOP=1 --set=SHOW_CONTEXT=never \
        --set=revision="$revision" --set=tables="$tables" --set=role="$MLFLOW_BACKUP_RUNTIME_ROLE" \
        --set=old_root="$old_root" --set=new_root="$new_root" \
        > "$work/stdout" 2> "$work/stderr" &
    follow $! "restoring $label" || :
    if ! grep -qx restored "$work/stdout"; then
        explain "$(cat "$work/stderr" "$work/reading" | sed 's/^psql:<stdin>:[0-9]*: //; s/^ERROR:  *//; /^HINT: /d')"
        outcome='was not restored, and is as it was'
        case $words in
            *'lock timeout'*) words="sessions use it: $(blockers); end them, and run again" ;;
            *'server closed the connection'* | *'terminating connection'* | *'connection to server was lost'*)
                # Perhaps the answer to COMMIT was lost.
                changed=true
                outcome='is perhaps not restored, so run again when the server is back' ;;
        esac
        earlier=${restored:+; restored already: $restored, so run again when that is mended}
        fail "$code" "$label $outcome: $words$earlier"
    fi
    changed=true
    restored="${restored:+$restored, }$store"
    say "restored $label"
}

check() {
    reach
    ask "SELECT has_schema_privilege(current_schema(), 'CREATE')"
    if [ "$answer" != t ]; then
        fail "$ACCESS" "$label: role $PGUSER may not create tables in its schema; expected the right CREATE"
    fi
}

# resources FILE: writes what there is to be permitted, kind, id and name, a line each.
resources() {
    : > "$1"
    while IFS= read -r line <&3; do
        take "$line"
        for kind in experiment registered_model; do
            case $kind in
                experiment) table=experiments columns='experiment_id, name' ;;
                *) table=registered_models columns='name, name' ;;
            esac
            ask "SELECT to_regclass('$table') IS NOT NULL"
            if [ "$answer" = t ]; then
                ask "SELECT concat_ws(E'\\t', '$kind', $columns) FROM $table"
                printf '%s\n' "$answer" >> "$1"
            fi
        done
    done 3< "$work/restore.list"
}

# permitted FILE: writes what the users of the environment have permissions on, kind and id.
permitted() {
    : > "$1"
    printf '%s' "$MLFLOW_BACKUP_TARGETS" | grep "^auth$tab" > "$work/auth" || return 0
    take "$(cat "$work/auth")"
    ask "SELECT to_regclass('role_permissions') IS NOT NULL"
    if [ "$answer" = t ]; then
        statement="SELECT DISTINCT resource_type, resource_pattern FROM role_permissions
            WHERE resource_type IN ('experiment', 'registered_model') AND resource_pattern <> '*'"
    else
        statement="SELECT DISTINCT 'experiment', experiment_id FROM experiment_permissions
            UNION SELECT DISTINCT 'registered_model', name FROM registered_model_permissions"
    fi
    ask "SELECT concat_ws(E'\\t', resource_type, id) FROM ($statement) AS p (resource_type, id)"
    printf '%s\n' "$answer" | sort > "$1"
}

# strangers: sets warnings to a JSON list of what permissions mean now that they did not mean before.
strangers() {
    resources "$work/resources.now"
    permitted "$work/permitted"
    awk -F "$tab" -v now="$work/resources.now" '
        FILENAME == ARGV[3] {
            if ($1 == "") next
            what = $1 == "experiment" ? "experiment " $2 : "model " $2
            if (!(($1, $2) in new)) print "a user may use " what ", which is not there any more"
            else if (old[$1, $2] != new[$1, $2])
                print "a user may use " what ", which is now " new[$1, $2] \
                    (($1, $2) in old ? " and was " old[$1, $2] : "")
            next
        }
        FILENAME == now { new[$1, $2] = $3; next }
        { old[$1, $2] = $3 }
    ' "$work/resources.before" "$work/resources.now" "$work/permitted" > "$work/strangers"
    warnings=
    while IFS= read -r line <&3; do
        say "$line"
        warnings="${warnings:+$warnings, }$(quoted "$line")"
    done 3< "$work/strangers"
}

restored='' warnings='' old_root='' new_root=''
case ${1:-} in
    check)
        printf '%s' "$MLFLOW_BACKUP_TARGETS" > "$work/list"
        command=check ;;
    restore)
        cp "$work/restore.list" "$work/list"
        command=restore ;;
    *)
        fail 2 'usage: restore.sh check|restore' ;;
esac
# All of it is looked at before any of it is replaced.
while IFS= read -r line <&3; do
    take "$line"
    check
    if [ "$command" = restore ] && [ "$revision" != - ] &&
        ! pg_restore --list "$work/backup/$store.dump" > /dev/null 2> "$work/stderr"; then
        fail "$REFUSED" "the dump of $label cannot be read: $(cat "$work/stderr")"
    fi
done 3< "$work/list"
if [ "$command" = restore ]; then
    if [ -s "$work/roots" ]; then
        { IFS= read -r old_root && IFS= read -r new_root; } < "$work/roots"
    fi
    if [ -n "${MLFLOW_BACKUP_INTO:-}" ]; then
        resources "$work/resources.before"
    fi
    while IFS= read -r line <&3; do
        take "$line"
        restore
    done 3< "$work/list"
fi
if [ "$command" = restore ] && [ -n "${MLFLOW_BACKUP_INTO:-}" ]; then
    strangers
fi
printf '{"changed": %s, "restored": %s, "warnings": [%s]}\n' "$changed" "$(quoted "$restored")" "$warnings"
