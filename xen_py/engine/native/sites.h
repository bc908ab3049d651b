/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is known of an indirect jump, and the part of it that look.c asks each time (sites.c says what it is for). The
 * domain's thread's.
 */
#ifndef XPY_SITES_H
#define XPY_SITES_H

#include "internal.h"

struct target {
    uint64_t pc;
    void *code;
};

#define MOST_TARGETS 7
#define NOWHERE (1ull << 63) /* no address */
#define LEARN_EVERY 16

struct others { /* of a jump that goes to several places: all of them, since the site's generation began */
    uint8_t count, replaced, asked, asks; /* asked: for which of them the function was asked, the last time */
    bool learning; /* nothing is expected, so that the next is asked for, whatever it is */
    uint8_t follower[MOST_TARGETS]; /* which of them came after each; MOST_TARGETS: it is not known */
    struct target targets[MOST_TARGETS];
};

struct site {
    struct target next; /* where the jump is expected to go */
    uint64_t generation;
    struct others *others; /* null: it has always gone there */
};

/* The jump has not gone where it was expected to, but to that target. Many go round in a circle, as a function returns that
 * is called from three places for each page of a request; so what has come after a target is expected after it. */
static inline void xpy_expect_next(const struct xpy_engine *e, struct site *site, uint32_t n)
{
    struct others *o = site->others;

    if (o->learning)
        o->follower[o->asked] = (uint8_t)n;
    o->asked = (uint8_t)n;
    o->learning = o->follower[n] == MOST_TARGETS || ++o->asks % LEARN_EVERY == 0;
    site->next = o->learning ? (struct target){NOWHERE, (void *)e->way_out} : o->targets[o->follower[n]];
}

/* Of a jump that does not go where it was expected to: the code at eip, if it has been there before. */
static inline void *xpy_ask_site(const struct xpy_engine *e, struct site *site)
{
    struct others *o = site->others;

    if (!o || site->generation != e->generations[e->mode])
        return NULL;
    for (uint32_t n = 0; n < o->count; n++) {
        if (o->targets[n].pc == e->cpu->eip) {
            xpy_expect_next(e, site, n);
            return o->targets[n].code;
        }
    }
    return NULL;
}

void xpy_set_site(struct xpy_engine *e, struct site *site, const struct block *b);

#endif
