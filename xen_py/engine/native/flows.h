/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Flows: where the packets of a connection go, learned from what the switch has done with one of them.
 *
 * A flow is the packets that come in at one place of a switch with the same Ethernet addresses, IP addresses, protocol and
 * ports. All that a switch and its filters decide by is in that, so what was found right for one of them is right for all,
 * until anything changes at a switch: then all flows are forgotten. They are forgotten by themselves after a while, too,
 * for the switch has to hear now and then of who is still there.
 *
 * Only TCP and UDP without anything unusual are flows: no options or fragments of IPv4, no extension headers of IPv6, no
 * tags, no segment that begins a connection, no DHCP. All else is the switch's (dom0/backend/net/switch.py).
 */
#ifndef XENPY_FLOWS_H
#define XENPY_FLOWS_H

#include <stdbool.h>
#include <stdint.h>

struct xenpy_frame {
    uint32_t network, transport, behind, end; /* offsets: IP header, TCP or UDP header, what follows it, end of IP's packet */
    uint8_t version, protocol;
};

/* Whether the bytes are a packet that a flow may have; its headers are all there, then. */
bool xenpy_parse(const uint8_t *data, uint32_t size, struct xenpy_frame *frame);

/* Put the TCP or UDP checksum in, whatever is in its field. */
void xenpy_complete(uint8_t *data, const struct xenpy_frame *frame);

struct xenpy_flow_key {
    uint32_t source;
    uint8_t version, protocol, padding[2];
    uint8_t ethernet[12];
    uint8_t addresses[32];
    uint8_t ports[4];
};

struct xenpy_flow {
    struct xenpy_flow_key key;
    uint32_t target; /* a place of the datapath */
    uint32_t longest; /* bytes of a frame; larger ones are the switch's */
    uint64_t until; /* nanoseconds of the monotonic clock */
    uint64_t generation;
};

#define XENPY_FLOWS 4096

struct xenpy_flows {
    uint64_t generation; /* flows of earlier ones are forgotten; begins at 1 */
    struct xenpy_flow table[XENPY_FLOWS];
};

const struct xenpy_flow *xenpy_flow_of(const struct xenpy_flows *flows, uint32_t source, const uint8_t *data,
                                       const struct xenpy_frame *frame, uint64_t now);
void xenpy_flow_learn(struct xenpy_flows *flows, uint32_t source, const uint8_t *data, const struct xenpy_frame *frame,
                      uint32_t target, uint32_t longest, uint64_t now);
#endif
