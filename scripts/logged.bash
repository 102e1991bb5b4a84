# Sourced by the trainings: `run_logged OUTPUT COMMAND …` runs a training and keeps what it prints in OUTPUT/train.log. A run that its
# checks refuse leaves no folder: until OUTPUT/run.json is there, the log stands beside OUTPUT under another name.
run_logged() {
    local output=$1 above log link remove
    shift
    if [ -d "$output" ]; then
        "$@" 2>&1 | tee -ia "$output/train.log"
        return
    fi
    above=$(dirname "$output")
    mkdir -p "$above"
    log=$(mktemp "$above/.train-log.XXXXXX")
    (
        until [ -f "$output/run.json" ]; do
            read -rt 1 <> <(:) || true # a sleep that is no process of its own
        done
        ln -f "$log" "$output/train.log" 2>/dev/null || true # a disk without links gets a copy at the end
    ) &
    # A run may have been too short for the loop above to see that it began.
    printf -v link '[ -f %q ] && { ln -f %q %q 2>/dev/null || cp %q %q; } || true' \
        "$output/run.json" "$log" "$output/train.log" "$log" "$output/train.log"
    printf -v remove 'rm -f %q; rmdir %q 2>/dev/null || true' "$log" "$above"
    trap "kill $! 2>/dev/null || true; wait $! 2>/dev/null || true; $link; $remove" EXIT
    "$@" 2>&1 | tee -i "$log"
}
