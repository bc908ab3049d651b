/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Writes to a guest's frame from outside (xen_py/outside.py), as a model for spin (Debian package "spin"):
 *
 *     spin -a outside.pml && cc -O2 -o pan pan.c && ./pan
 *
 * Two threads of the host write one frame, each as often as it likes, while the domain's thread makes it a table,
 * relies on what it saw in it, and lets it be an ordinary frame again, and also maps it as code and translates it.
 * Claims: a table is never other than it was when it was looked at, and a guest that has been told of data never runs
 * what was translated before.
 *
 * The same model with one of these steps changed must fail, or it proves nothing:
 *     spin -a -DLOOK_FIRST   the host looks at the bar before it makes its mark
 *     spin -a -DNO_WAIT      the domain does not wait for marks
 *     spin -a -DADMIT_EARLY  the bar is lifted before the last look at the table
 *     spin -a -DSEEN_LATE    code is marked as seen after it was translated
 *     spin -a -DSEEN_FIRST   the host looks for code before the data is there
 */

byte writers, data;       /* data: a number that changes with every write */
bool barred, seen;
byte translated;          /* what the engine has translated; 0: nothing */
bool told, wants;         /* a writer asks the domain's thread to drop code */

#define NEXT(n) (1 + (n) % 3)

proctype Writer()
{
    bool looked, code;

    do
    :: true ->
#ifdef LOOK_FIRST
        looked = barred;
        writers++;
#else
        writers++;
        looked = barred;
#endif
        if
        :: looked -> writers--
        :: else ->
#ifdef SEEN_FIRST
            code = seen;
            data = NEXT(data);
#else
            data = NEXT(data);
            code = seen;
#endif
            writers--;
            if
            :: code -> atomic { !wants; wants = true }; atomic { told; told = false; wants = false }
            :: else -> skip
            fi
            /* here the guest is told of the data: it may run the frame from now on */
        fi
    :: break
    od
}

active proctype Domain()
{
    byte table;

end:
    do
    :: atomic { wants && !told -> translated = 0; seen = false; told = true }
    :: !barred ->                           /* make it a table */
        barred = true;
#ifndef NO_WAIT
        writers == 0;
#endif
        table = data;
        assert(table == data);
#ifdef ADMIT_EARLY
        barred = false;
        assert(table == data)
#else
        assert(table == data);
        barred = false
#endif
    :: !seen && translated == 0 ->          /* map it as code and run it for the first time */
#ifdef SEEN_LATE
        translated = data;
        seen = true
#else
        seen = true;
        translated = data
#endif
    od
}

init
{
    atomic { run Writer(); run Writer() };
    _nr_pr == 2;                            /* all data is there and the guest knows */
    assert(translated == 0 || translated == data)
}
