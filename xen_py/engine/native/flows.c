// SPDX-License-Identifier: GPL-2.0-only
//
// The table of flows, and as much of frames as it needs (flows.h). What xen_py/io/packet.py makes of headers and
// checksums is the reference; tests/net/test_datapath.py compares. Frames come from guests: nothing in them is believed.
// No state but the table, which belongs to whoever holds the datapath's lock.

#define _GNU_SOURCE
#include "flows.h"

#include <string.h>

#define ETHERNET 14
#define WAYS 4 // flows that share a place of the table
#define VALID_NS 10000000000ull

enum { IPV4 = 0x0800, IPV6 = 0x86dd };
enum { TCP = 6, UDP = 17 };
enum { TCP_SYN = 2 };
enum { BOOTPS = 67, BOOTPC = 68, DHCPV6_CLIENT = 546, DHCPV6_SERVER = 547 };

static uint32_t word(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }

static bool for_addresses(uint32_t port)
{
    return port == BOOTPS || port == BOOTPC || port == DHCPV6_CLIENT || port == DHCPV6_SERVER;
}

bool xenpy_parse(const uint8_t *data, uint32_t size, struct xenpy_frame *f)
{
    if (size < ETHERNET + 20 || data[0] & 1)
        return false;
    f->network = ETHERNET;
    if (word(data + 12) == IPV4) {
        if (data[ETHERNET] != 0x45 || word(data + ETHERNET + 6) & 0x3fff)
            return false;
        f->version = 4;
        f->protocol = data[ETHERNET + 9];
        f->transport = ETHERNET + 20;
        f->end = ETHERNET + word(data + ETHERNET + 2);
    } else if (word(data + 12) == IPV6 && size >= ETHERNET + 40) {
        if (data[ETHERNET] >> 4 != 6)
            return false;
        f->version = 6;
        f->protocol = data[ETHERNET + 6];
        f->transport = ETHERNET + 40;
        f->end = f->transport + word(data + ETHERNET + 4);
    } else {
        return false;
    }
    if (f->end > size || f->end < f->transport + 8)
        return false;
    const uint8_t *transport = data + f->transport;
    if (f->protocol == UDP) {
        f->behind = f->transport + 8;
        return !for_addresses(word(transport)) && !for_addresses(word(transport + 2));
    }
    if (f->protocol != TCP || f->end < f->transport + 20 || transport[13] & TCP_SYN)
        return false;
    f->behind = f->transport + (transport[12] >> 4) * 4u;
    return f->behind >= f->transport + 20 && f->behind <= f->end;
}

// The sum of bytes as words of network order (RFC 1071), not folded; in the machine's order, which comes to the same.
static uint64_t sum(const uint8_t *at, uint32_t size, uint64_t total)
{
    uint32_t piece;
    uint16_t rest = 0;

    for (; size >= 4; size -= 4, at += 4) {
        memcpy(&piece, at, 4);
        total += piece;
    }
    if (size >= 2) {
        memcpy(&rest, at, 2);
        total += rest;
        at += 2;
        size -= 2;
    }
    if (size) {
        rest = 0;
        memcpy(&rest, at, 1);
        total += rest;
    }
    return total;
}

void xenpy_complete(uint8_t *data, const struct xenpy_frame *f)
{
    uint8_t *field = data + f->transport + (f->protocol == TCP ? 16 : 6);
    uint32_t addresses = f->version == 4 ? 8 : 32, length = f->end - f->transport;
    uint8_t pseudo[8] = {(uint8_t)(length >> 24), (uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length,
                         [7] = f->protocol};
    uint16_t value;

    memset(field, 0, 2);
    uint64_t total = sum(data + f->transport, length, sum(data + f->transport - addresses, addresses, sum(pseudo, 8, 0)));
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    value = (uint16_t)~total;
    if (!value && f->protocol == UDP)
        value = 0xffff;
    memcpy(field, &value, 2);
}

// ---- the table ----

static void make_key(struct xenpy_flow_key *key, uint32_t source, const uint8_t *data, const struct xenpy_frame *f)
{
    uint32_t addresses = f->version == 4 ? 8 : 32;

    memset(key, 0, sizeof *key);
    key->source = source;
    key->version = f->version;
    key->protocol = f->protocol;
    memcpy(key->ethernet, data, 12);
    memcpy(key->addresses, data + f->transport - addresses, addresses);
    memcpy(key->ports, data + f->transport, 4);
}

static uint32_t set_of(const struct xenpy_flow_key *key)
{
    uint64_t words[sizeof *key / 8], hash = 0;

    _Static_assert(sizeof *key % 8 == 0, "a key is whole words");
    memcpy(words, key, sizeof *key);
    for (uint32_t n = 0; n < sizeof *key / 8; n++) {
        hash = (hash ^ words[n]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return (uint32_t)(hash >> 32) % (XENPY_FLOWS / WAYS) * WAYS;
}

const struct xenpy_flow *xenpy_flow_of(const struct xenpy_flows *flows, uint32_t source, const uint8_t *data,
                                       const struct xenpy_frame *frame, uint64_t now)
{
    struct xenpy_flow_key key;

    make_key(&key, source, data, frame);
    const struct xenpy_flow *set = flows->table + set_of(&key);
    for (uint32_t n = 0; n < WAYS; n++)
        if (set[n].generation == flows->generation && set[n].until > now && !memcmp(&set[n].key, &key, sizeof key))
            return &set[n];
    return NULL;
}

void xenpy_flow_learn(struct xenpy_flows *flows, uint32_t source, const uint8_t *data, const struct xenpy_frame *frame,
                      uint32_t target, uint32_t longest, uint64_t now)
{
    struct xenpy_flow_key key;

    make_key(&key, source, data, frame);
    struct xenpy_flow *set = flows->table + set_of(&key), *chosen = set;
    for (uint32_t n = 0; n < WAYS; n++) {
        if (!memcmp(&set[n].key, &key, sizeof key)) {
            chosen = &set[n];
            break;
        }
        if (set[n].generation < chosen->generation ||
            (set[n].generation == chosen->generation && set[n].until < chosen->until))
            chosen = &set[n];
    }
    *chosen = (struct xenpy_flow){.key = key, .target = target, .longest = longest, .until = now + VALID_NS,
                                  .generation = flows->generation};
}
