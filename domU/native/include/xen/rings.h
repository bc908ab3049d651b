// SPDX-License-Identifier: GPL-2.0-only
// The two shared pages every PV guest starts with: console (public/io/console.h) and store (public/io/xs_wire.h).
#ifndef XEN_RINGS_H
#define XEN_RINGS_H

#include <xen/types.h>

struct console_ring {
    char in[1024];
    char out[2048];
    u32 in_cons, in_prod;
    u32 out_cons, out_prod;
};

struct store_ring {
    char req[1024];
    char rsp[1024];
    u32 req_cons, req_prod;
    u32 rsp_cons, rsp_prod;
    u32 server_features;
    u32 connection;
    u32 error;
};

struct store_message {
    u32 type;
    u32 req_id;
    u32 tx_id;
    u32 len;
};
#define XS_DIRECTORY 1
#define XS_READ 2
#define XS_WATCH 4
#define XS_UNWATCH 5
#define XS_WRITE 11
#define XS_RM 13
#define XS_WATCH_EVENT 15
#define XS_ERROR 16

#endif
