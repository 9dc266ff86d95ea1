# What dump.sh, verify.sh and restore.sh share. They run in an image of PostgreSQL, which has no Python.
# The password is in PGPASSWORD, so that it shows in no argument and no log.

# The exit codes of the schema program: 10 may come right by itself, the others want a person.
RETRYABLE=10
REFUSED=12
ACCESS=13

work=${MLFLOW_BACKUP_WORK:-/work}
termination_log=${MLFLOW_BACKUP_TERMINATION_LOG:-/dev/termination-log}
tab=$(printf '\t')
# The server's words are compared with English ones.
export LC_ALL=C PGCONNECT_TIMEOUT=5
PGAPPNAME="mlflow-backup $(uname -n)"
export PGAPPNAME

# A process that is the first of its container gets no default action for this signal.
child=
trap 'if [ -n "$child" ]; then kill "$child" 2> /dev/null || :; fi; exit 143' TERM INT

say() {
    printf '%s\n' "$*" >&2
}

# A text on one line, its end kept when it is too long.
one_line() {
    printf '%s' "$*" | tr -s '[:space:][:cntrl:]' ' ' | tail -c 3000
}

# quoted TEXT: a text as JSON.
quoted() {
    printf '"%s"' "$(one_line "$*" | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# fail CODE SENTENCE: the reason also goes to where Kubernetes looks for it. The last line is the report.
changed=false
fail() {
    code=$1
    shift
    message=$(one_line "$*")
    say "$message"
    if [ -w "$termination_log" ]; then
        printf '%s' "$message" > "$termination_log"
    fi
    printf '{"changed": %s, "exit_code": %s, "error": %s}\n' "$changed" "$code" "$(quoted "$message")"
    exit "$code"
}

# take LINE: what a line of the list says of one database; libpq reads these variables.
take() {
    IFS=$tab read -r store PGHOST PGPORT PGDATABASE PGUSER revision <<EOF
$1
EOF
    export PGHOST PGPORT PGDATABASE PGUSER
    label="the $store database $PGDATABASE at $PGHOST:$PGPORT"
}

# explain TEXT: sets code and words from what a client of PostgreSQL said.
explain() {
    words=$(one_line "$1")
    code=$REFUSED
    case $words in
        *'password authentication failed'* | *'no password supplied'*)
            code=$ACCESS
            words="the password of role $PGUSER (mlflow_environment_secrets.database_migrator_password) is wrong, or \
the role does not exist" ;;
        *'no pg_hba.conf entry'*)
            code=$ACCESS
            words="pg_hba.conf does not allow role $PGUSER, this database or this address" ;;
        *'server does not support SSL'*)
            code=$ACCESS
            words="it offers no TLS, which mlflow_database_tls_mode asks for" ;;
        *'certificate verify failed'*)
            code=$ACCESS
            words="its certificate is not signed by mlflow_database_ca_certificate, or not valid now" ;;
        *'does not match host name'*)
            code=$ACCESS
            words="its certificate is for another name than mlflow_database_host" ;;
        *'permission denied'* | *'must be owner'* | *'is not permitted to log in'* | *'does not exist'*)
            code=$ACCESS ;;
        *'could not connect'* | *'Connection refused'* | *'timeout expired'* | *'could not translate host name'* | \
            *'Connection timed out'* | *'No route to host'* | *'the database system is'* | *'too many clients'* | \
            *'terminating connection'* | *'server closed the connection'* | *'connection to server was lost'* | \
            *'no connection to the server'* | *'lock timeout'* | *'deadlock detected'* | *'canceling statement'*)
            code=$RETRYABLE ;;
    esac
}

# query STATEMENT: its rows, one a line.
query() {
    psql --no-psqlrc --no-password --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --command="$1"
}

# ask STATEMENT: sets answer; what goes wrong ends the program.
ask() {
    if ! answer=$(query "$1" 2> "$work/stderr"); then
        explain "$(cat "$work/stderr")"
        fail "$code" "$label: $words"
    fi
}

# each_line PREFIX STATEMENT: sets answer to the rows, each with the prefix and quoted for eval.
each_line() {
    ask "$2"
    answer=$(printf '%s\n' "$answer" | sed "s/'/'\\\\''/g; s/.*/'$1&'/" | tr '\n' ' ')
}

# reach: wait until the database of take() answers; see that the tools here are not older than its server.
reach() {
    tries=0
    until version=$(query 'SHOW server_version_num' 2> "$work/stderr"); do
        explain "$(cat "$work/stderr")"
        tries=$((tries + 1))
        if [ "$code" != "$RETRYABLE" ] || [ "$tries" -ge 30 ]; then
            fail "$code" "$label cannot be used: $words"
        fi
        say "$label cannot be reached yet; trying again"
        sleep 1
    done
    server=$((version / 10000))
    client=$(pg_dump --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
    if [ "$client" -lt "$server" ]; then
        fail "$REFUSED" "$label is on PostgreSQL $server, but mlflow_backup_postgres_image has the tools of PostgreSQL \
$client, which cannot back it up; expected an image of PostgreSQL $server or later"
    fi
}

# follow PID WHAT: until a process in the background ends, tell every 10 s of it; returns its status.
follow() {
    child=$1
    fifths=0
    while kill -0 "$child" 2> /dev/null; do
        sleep 0.2
        fifths=$((fifths + 1))
        if [ $((fifths % 50)) -eq 0 ]; then
            progress "$2: $((fifths / 5)) s"
        fi
    done
    status=0
    wait "$child" || status=$?
    child=
    return "$status"
}

# What follow() does every 10 s; a program may have its own.
progress() {
    say "$1"
}

# How many rows each table has that is in the search path: a statement for each.
COUNT="SELECT format('SELECT %L, count(*) FROM %I.%I', nspname || '.' || relname, nspname, relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind = 'r' AND nspname = ANY(current_schemas(false)) AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"

directory=$work/backup
limit=${MLFLOW_BACKUP_SCRATCH_MIB:-0}

megabytes() {
    du -sm "$work" 2> /dev/null | cut -f 1
}

too_large() {
    fail "$REFUSED" "$(megabytes) MiB are more than the $limit MiB of mlflow_backup_scratch_size; expected a larger \
size$advice"
}

# limited WHAT: a progress() of what fills the volume. One that becomes too large would have the whole pod evicted,
# without a word.
limited() {
    say "$1, $(megabytes) MiB"
    if [ "$(megabytes)" -ge "$limit" ]; then
        kill "$child"
        too_large
    fi
}
