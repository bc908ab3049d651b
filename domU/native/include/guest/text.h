// SPDX-License-Identifier: GPL-2.0-only
// Memory and string helpers, and a small printf.
#ifndef GUEST_TEXT_H
#define GUEST_TEXT_H

#include <xen/types.h>

void *memcpy(void *to, const void *from, u64 length);
void *memset(void *to, int value, u64 length);
int memcmp(const void *a, const void *b, u64 length);
u64 text_length(const char *text);
bool text_equal(const char *a, const char *b);
bool text_starts(const char *text, const char *prefix);

// Conversions: %s %c %d %u %x %p (pointer), with l, a width and 0 padding. Returns the length written, always ends with 0.
u64 format_list(char *to, u64 size, const char *format, __builtin_va_list arguments);
u64 format_text(char *to, u64 size, const char *format, ...) __attribute__((format(printf, 3, 4)));

// To the console.
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
