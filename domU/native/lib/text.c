// SPDX-License-Identifier: GPL-2.0-only
// Memory and string helpers, formatting.
#include <guest/text.h>

void *memcpy(void *to, const void *from, u64 length)
{
    void *result = to;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
    return result;
}

void *memset(void *to, int value, u64 length)
{
    void *result = to;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
    return result;
}

int memcmp(const void *a, const void *b, u64 length)
{
    const u8 *x = a, *y = b;

    for (u64 i = 0; i < length; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}

u64 text_length(const char *text)
{
    u64 length = 0;

    while (text[length])
        length++;
    return length;
}

bool text_equal(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

bool text_starts(const char *text, const char *prefix)
{
    while (*prefix)
        if (*text++ != *prefix++)
            return false;
    return true;
}

struct output {
    char *to;
    u64 size;
    u64 used;
};

static void put(struct output *out, char c)
{
    if (out->used + 1 < out->size)
        out->to[out->used++] = c;
}

static void put_number(struct output *out, u64 value, u32 base, u32 width, char pad, bool negative)
{
    char digits[24];
    u32 count = 0;

    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    if (negative)
        digits[count++] = '-';
    for (u32 i = count; i < width; i++)
        put(out, pad);
    while (count)
        put(out, digits[--count]);
}

u64 format_list(char *to, u64 size, const char *format, __builtin_va_list arguments)
{
    struct output out = {to, size, 0};

    for (; *format; format++) {
        char pad = ' ';
        u32 width = 0;
        bool is_long = false;

        if (*format != '%') {
            put(&out, *format);
            continue;
        }
        format++;
        if (*format == '0')
            pad = '0';
        while (*format >= '0' && *format <= '9')
            width = width * 10 + (u32)(*format++ - '0');
        while (*format == 'l') {
            is_long = true;
            format++;
        }
        switch (*format) {
        case 's':
            for (const char *text = __builtin_va_arg(arguments, const char *); *text; text++)
                put(&out, *text);
            break;
        case 'c':
            put(&out, (char)__builtin_va_arg(arguments, int));
            break;
        case 'd': {
            s64 value = is_long ? __builtin_va_arg(arguments, s64) : __builtin_va_arg(arguments, s32);

            put_number(&out, value < 0 ? -(u64)value : (u64)value, 10, width, pad, value < 0);
            break;
        }
        case 'u':
            put_number(&out, is_long ? __builtin_va_arg(arguments, u64) : __builtin_va_arg(arguments, u32), 10, width,
                       pad, false);
            break;
        case 'x':
            put_number(&out, is_long ? __builtin_va_arg(arguments, u64) : __builtin_va_arg(arguments, u32), 16, width,
                       pad, false);
            break;
        case 'p':
            put_number(&out, __builtin_va_arg(arguments, u64), 16, 16, '0', false);
            break;
        default:
            put(&out, *format);
        }
    }
    if (size)
        to[out.used] = 0;
    return out.used;
}

u64 format_text(char *to, u64 size, const char *format, ...)
{
    __builtin_va_list arguments;
    u64 length;

    __builtin_va_start(arguments, format);
    length = format_list(to, size, format, arguments);
    __builtin_va_end(arguments);
    return length;
}
