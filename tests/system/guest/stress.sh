#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# stress SECONDS [MEGABYTES]: keep a guest busy for that long, check what it computes, and say at the end
# "stress: passed" or "stress: FAILED". Runs on busybox, with `torture` (torture.c) for what a shell cannot do.
# The lines "stress: sleep N begins" and "stress: sleep N ends" are for somebody outside with a clock.

seconds=${1:?usage: stress SECONDS [MEGABYTES]}
megabytes=${2:-64}
sleep=$((seconds / 6))
[ "$sleep" -gt 0 ] || sleep=1
busy=$((seconds - sleep))
failed=

wrong() {
    echo "stress: wrong: $*"
    failed=yes
}

echo "stress: begins, $seconds seconds"
for mode in fork pipe signal mmap fpu thread; do
    torture $mode $busy &
    tasks="$tasks $!"
done

# fork, exec and pipes as a shell does it
(
    end=$(($(date +%s) + busy))
    while [ "$(date +%s)" -lt $end ]; do
        word=$(echo abc | tr a-c x-z | sed 's/y/-/' | cat)
        [ "$word" = "x-z" ] || exit 1
        rounds=$((rounds + 1))
    done
    echo "stress: pipelines: ok, $rounds rounds"
) &
tasks="$tasks $!"

# a large file, of a random megabyte again and again
dd if=/dev/urandom of=/tmp/random bs=65536 count=16 2>/dev/null || wrong "dd if=/dev/urandom"
while [ "${count:=0}" -lt "$megabytes" ]; do
    cat /tmp/random
    count=$((count + 1))
done >/tmp/large
first=$(md5sum </tmp/large)
dd if=/tmp/large of=/tmp/piece bs=4096 skip=$((megabytes * 256 - 256)) count=256 2>/dev/null || wrong "dd of=/tmp/piece"
cmp /tmp/random /tmp/piece || wrong "dd has copied something else"
second=$(md5sum </tmp/large)
[ "$first" = "$second" ] || wrong "md5sum says first $first, then $second"
[ "$(wc -c </tmp/large)" -eq $((megabytes * 1048576)) ] || wrong "the file is not of $megabytes MB"
rm /tmp/large /tmp/random /tmp/piece
echo "stress: md5sum of $megabytes MB: ok"

for task in $tasks; do
    wait $task || wrong "task $task returned $?"
done

echo "stress: sleep $sleep begins"
sleep $sleep
echo "stress: sleep $sleep ends"

if [ "$failed" ]; then
    echo "stress: FAILED"
else
    echo "stress: passed"
fi
