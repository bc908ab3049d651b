/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kick protocol between the host and a domain's loop, as a model for spin (Debian package "spin"):
 *
 *     spin -a kick.pml && cc -O2 -o pan pan.c && ./pan
 *
 * Two senders ring two ports, in different words of one inbox (engine/native/link.c), while the domain's loop sleeps,
 * runs its guest or is just about to do either (dom0/host/vmloop.py), and the engine's watcher thread turns an edge of
 * the eventfd into the sticky stop flag. A guest may also look for marks by itself, and then nothing is written
 * (engine/native/look.c). Orders of the host go another way, a socket that the loop looks at between two stays in the
 * guest; a call tells of them. Claim: when everybody has come to rest, the loop has seen all that was sent, and obeyed.
 *
 * The same model with one of these steps changed must fail, or it proves nothing:
 *     spin -a -DTAKE_FIRST   marks are taken before the eventfd is emptied
 *     spin -a -DMARK_LATE    the eventfd is written before the mark is made
 *     spin -a -DCLEAR_LATE   the stop flag is cleared just before the guest is entered
 *     spin -a -DSUMMARY_LATE the loop takes a word before the summary that names it
 *     spin -a -DAWAKE_FIRST  the sender looks whether the guest looks before it raises the summary
 *     spin -a -DNO_LAST_LOOK the guest no longer looks, and nobody sees to marks made while it did
 *     spin -a -DNOT_ASKED    the loop enters the guest without asking whether it has been called
 *     spin -a -DASKED_FIRST  a guest that looks asks that before it takes the marks
 */

#define ROUNDS 1

byte sent[2], seen[2];     /* ring data: what was announced, what the loop has found */
bool word[2], summary[2];  /* the inbox */
bool eventfd, edge;        /* readable; and not yet told to the watcher */
bool stop;                 /* the engine's sticky flag */
byte ordered, obeyed;      /* the socket */
bool called;               /* there is something in the socket */
bool awake;                /* the guest looks at the summary by itself */
byte done;

inline write_eventfd() { d_step { eventfd = true; edge = true } }

inline mark(port, was)
{
    atomic { was = word[port]; word[port] = true }
    if
    :: was -> skip                          /* whoever set it raises the rest */
    :: else -> summary[port] = true
    fi
}

proctype Sender(byte port)
{
    byte n;
    bool was, looks;

    do
    :: n < ROUNDS ->
        sent[port]++;
#ifdef MARK_LATE
        write_eventfd();
        mark(port, was);
#else
#ifdef AWAKE_FIRST
        looks = awake;
        mark(port, was);
#else
        mark(port, was);
        looks = awake;
#endif
        if
        :: was || looks -> skip
        :: else -> write_eventfd()
        fi;
#endif
        n++
    :: else -> break
    od;
    done++
}

proctype Orderer()
{
    ordered++;
    called = true;
    summary[0] = true;
    write_eventfd();
    done++
}

active proctype Watcher()
{
    bool readable;

end:
    do
    :: atomic { edge -> edge = false; readable = eventfd };  /* what has been emptied is no news */
        if
        :: readable -> stop = true
        :: else -> skip
        fi
    od
}

inline look(port, named, marked)
{
    if
    :: named ->
        atomic { marked = word[port]; word[port] = false }
        if
        :: marked -> seen[port] = sent[port]
        :: else -> skip
        fi
    :: else -> skip
    fi
}

inline take()
{
#ifdef SUMMARY_LATE
    look(0, summary[0], marked);
    look(1, summary[1], marked);
    d_step { summary[0] = false; summary[1] = false }
#else
    d_step { named0 = summary[0]; summary[0] = false; named1 = summary[1]; summary[1] = false }
    look(0, named0, marked);
    look(1, named1, marked);
#endif
}

inline take_and_ask()
{
#ifdef ASKED_FIRST
    d_step { left = called; called = false };
    take()
#else
    take();
    d_step { left = called; called = false }
#endif
}

active proctype Loop()
{
    bool named0, named1, marked, left;

end:
    do
    ::
        obeyed = ordered;
#ifdef TAKE_FIRST
        take();
        eventfd = false;
#else
        eventfd = false;
        take();
#endif
#ifdef CLEAR_LATE
        stop = false;
#endif
#ifndef NOT_ASKED
        d_step { left = called; called = false }
#endif
        if
        :: left -> skip                     /* and obeys */
        :: !left ->                         /* the guest runs until it is stopped */
endrun:     stop;
            stop = false
        :: !left ->                         /* or runs and looks, and may be left for another reason */
            awake = true;
            if
            :: true ->
endlook:        do
                :: summary[0] || summary[1] -> take_and_ask(); if :: left -> break :: else -> skip fi
                od
            :: true ->
                do
                :: summary[0] || summary[1] -> take_and_ask(); if :: left -> break :: else -> skip fi
                :: true -> break
                od
            fi;
            awake = false;
#ifndef NO_LAST_LOOK
            if
            :: summary[0] || summary[1] -> write_eventfd()
            :: else -> skip
            fi;
#endif
            if
            :: true -> skip
            :: !left ->                     /* namely to sleep */
endleft:        eventfd || ordered != obeyed
            fi
        :: !left ->                         /* or every vCPU sleeps */
endsleep:   eventfd || ordered != obeyed
        fi;
        left = false
    od
}

init
{
    run Sender(0);
    run Sender(1);
    run Sender(0);
    run Orderer();
    done == 4;
    timeout;
    assert(seen[0] == sent[0] && seen[1] == sent[1] && obeyed == ordered)
}
