// SPDX-License-Identifier: GPL-2.0-only
// Fixed-size integers and the few compiler words the guests use. Nothing of a hosted C library is available to them.
#ifndef XEN_TYPES_H
#define XEN_TYPES_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long s64;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096UL
#define PAGE_MASK (~(PAGE_SIZE - 1))

#define barrier() __asm__ volatile("" ::: "memory")
#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))
#define offset_of(type, member) __builtin_offsetof(type, member)
#define PAGE_ALIGNED __attribute__((aligned(4096)))

#endif
