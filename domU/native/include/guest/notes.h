// SPDX-License-Identifier: GPL-2.0-only
// The ELF notes a PV kernel is recognised by (public/elfnote.h). Each program states its own, by one macro at file level.
#ifndef GUEST_NOTES_H
#define GUEST_NOTES_H

#define XEN_NOTE(type, value)                                                                                          \
    __asm__(".pushsection .note.Xen, \"a\", @note\n"                                                                   \
            ".balign 4\n"                                                                                              \
            ".long 4, 2f - 1f, " #type "\n"                                                                            \
            ".asciz \"Xen\"\n"                                                                                         \
            "1: " value "\n"                                                                                           \
            "2: .balign 4\n"                                                                                           \
            ".popsection\n");

#define XEN_NOTES_COMMON                                                                                               \
    XEN_NOTE(1, ".quad _start")                                                                                        \
    XEN_NOTE(3, ".quad 0xffffffff80000000")                                                                            \
    XEN_NOTE(4, ".quad 0")                                                                                             \
    XEN_NOTE(5, ".asciz \"xen-3.0\"")                                                                                  \
    XEN_NOTE(6, ".asciz \"xen-py-guest\"")                                                                             \
    XEN_NOTE(7, ".asciz \"1\"")                                                                                        \
    XEN_NOTE(8, ".asciz \"generic\"")                                                                                  \
    XEN_NOTE(9, ".asciz \"yes\"")                                                                                      \
    XEN_NOTE(10, ".asciz \"!writable_page_tables|pae_pgdir_above_4gb\"")

// What a kernel of today says: no hypercall page.
#define XEN_NOTES XEN_NOTES_COMMON

// What mini-os, GRUB and older kernels say: the hypervisor fills a page of stubs, 32 bytes for each hypercall.
#define XEN_NOTES_WITH_HYPERCALL_PAGE                                                                                  \
    XEN_NOTES_COMMON                                                                                                   \
    XEN_NOTE(2, ".quad hypercall_page")                                                                                \
    __asm__(".pushsection .text\n"                                                                                     \
            ".globl hypercall_page\n"                                                                                  \
            ".balign 4096\n"                                                                                           \
            "hypercall_page: .skip 4096, 0xcc\n"                                                                       \
            ".popsection\n");

// The string form that came before the notes, in a section of its own.
#define XEN_GUEST_SECTION                                                                                              \
    __asm__(".pushsection __xen_guest, \"a\", @progbits\n"                                                             \
            ".asciz \"GUEST_OS=xen-py-guest,GUEST_VER=1,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,"                 \
            "ELF_PADDR_OFFSET=0x0,VIRT_ENTRY=0xffffffff80100000,PAE=yes,LOADER=generic\"\n"                            \
            ".popsection\n");

#endif
