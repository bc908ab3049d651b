// SPDX-License-Identifier: GPL-2.0-only
// A guest to see Xen with: prints what it finds, reads its name from the store, echoes console lines, ticks on request,
// and obeys control/shutdown. Build: native_build.py; run: xl create -c examples/hello.cfg
#include <guest/clock.h>
#include <guest/console.h>
#include <guest/events.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <guest/notes.h>
#include <guest/pages.h>
#include <guest/store.h>
#include <guest/text.h>
#include <xen/memory.h>
#include <xen/sched.h>
#include <xen/version.h>

XEN_NOTES

static char line[256];
static u32 line_length;

static void show_hypervisor(void)
{
    static char extra[16], capabilities[1024];
    struct xen_feature_info features = {0, 0};
    long version = hyp_xen_version(XENVER_version, NULL);

    hyp_xen_version(XENVER_extraversion, extra);
    hyp_xen_version(XENVER_capabilities, capabilities);
    hyp_xen_version(XENVER_get_features, &features);
    print("Xen version:  %ld.%ld%s\n", version >> 16, version & 0xffff, extra);
    print("capabilities: %s\n", capabilities);
    print("features:     %08x\n", features.submap);
}

static void show_start_info(void)
{
    print("magic:        %s\n", start_info->magic);
    print("command line: \"%s\"\n", start_info->cmd_line);
    print("flags:        %x\n", start_info->flags);
    print("shared info:  machine %lx\n", start_info->shared_info);
    print("store:        mfn %lx port %u\n", start_info->store_mfn, start_info->store_evtchn);
    print("console:      mfn %lx port %u\n", start_info->console_mfn, start_info->console_evtchn);
    print("page tables:  %lx, %lu frames\n", start_info->pt_base, start_info->nr_pt_frames);
    print("p2m list:     %lx, first mfn %lx\n", start_info->mfn_list, pfn_to_mfn(0));
    print("module:       %lx, %lu bytes\n", start_info->mod_start, start_info->mod_len);
}

static void show_memory(void)
{
    static struct e820_entry entries[8];
    struct xen_memory_map map = {ARRAY_LENGTH(entries), entries};
    struct xen_machphys_mapping m2p;
    u16 self = DOMID_SELF;

    print("memory:       %lu pages now, %ld at most\n", start_info->nr_pages,
          hyp_memory_op(XENMEM_maximum_reservation, &self));
    if (hyp_memory_op(XENMEM_memory_map, &map) == 0)
        for (u32 i = 0; i < map.nr_entries; i++)
            print("  e820:       %016lx-%016lx type %u\n", entries[i].addr, entries[i].addr + entries[i].size,
                  entries[i].type);
    if (hyp_memory_op(XENMEM_machphys_mapping, &m2p) == 0)
        print("m2p:          %lx-%lx, max mfn %lx\n", m2p.v_start, m2p.v_end, m2p.max_mfn);
}

static void show_time(void)
{
    u64 now = clock_now(), wall = clock_wall_ns();

    print("time:         %lu.%03lu s since boot, %lu.%03lu s since 1970, TSC %lu kHz\n", now / NS_PER_S,
          now % NS_PER_S / NS_PER_MS, wall / NS_PER_S, wall % NS_PER_S / NS_PER_MS, tsc_frequency_khz());
}

static void show_name(void)
{
    char name[128];

    if (store_read("name", name, sizeof(name)) >= 0)
        print("name:         %s\n", name);
    else
        print("name:         none (%s)\n", store_error);
}

static void prompt(void)
{
    print("> ");
}

static void run_line(void)
{
    if (text_equal(line, "help")) {
        print("help, info, time, sleep, poweroff, reboot, crash; anything else is echoed\n");
    } else if (text_equal(line, "info")) {
        show_hypervisor();
        show_start_info();
        show_memory();
    } else if (text_equal(line, "time")) {
        show_time();
    } else if (text_equal(line, "sleep")) {
        u64 before = clock_now();

        clock_sleep(NS_PER_S);
        print("slept %lu ms, %lu timer events so far\n", (clock_now() - before) / NS_PER_MS, timer_ticks);
    } else if (text_equal(line, "poweroff")) {
        machine_shutdown(SHUTDOWN_poweroff);
    } else if (text_equal(line, "reboot")) {
        machine_shutdown(SHUTDOWN_reboot);
    } else if (text_equal(line, "crash")) {
        machine_shutdown(SHUTDOWN_crash);
    } else if (line_length) {
        print("you said: %s\n", line);
    }
}

// One byte from the console: a simple line editor with echo.
static void take_byte(char byte)
{
    if (byte == '\r' || byte == '\n') {
        print("\n");
        line[line_length] = 0;
        run_line();
        line_length = 0;
        prompt();
    } else if (byte == 0x7f || byte == '\b') {
        if (line_length) {
            line_length--;
            print("\b \b");
        }
    } else if (line_length + 1 < sizeof(line)) {
        line[line_length++] = byte;
        console_write(&byte, 1);
    }
}

// The toolstack writes its wish to control/shutdown; emptying the node acknowledges it.
static void obey_shutdown(void)
{
    char wish[32];

    if (store_read("control/shutdown", wish, sizeof(wish)) <= 0)
        return;
    print("\ncontrol/shutdown: %s\n", wish);
    store_write("control/shutdown", "");
    if (text_equal(wish, "poweroff") || text_equal(wish, "halt"))
        machine_shutdown(SHUTDOWN_poweroff);
    if (text_equal(wish, "reboot"))
        machine_shutdown(SHUTDOWN_reboot);
    print("not known here\n");
    prompt();
}

static bool has_work(void *unused)
{
    (void)unused;
    return console_has_input() || store_has_event();
}

void guest_main(void)
{
    char path[256], token[64], byte;

    timer_init();
    print("\nHello from a native PV guest.\n");
    show_hypervisor();
    show_start_info();
    show_memory();
    show_time();
    show_name();
    if (store_watch("control/shutdown", "shutdown") < 0)
        print("cannot watch control/shutdown: %s\n", store_error);
    prompt();
    for (;;) {
        while (console_read(&byte))
            take_byte(byte);
        while (store_next_event(path, sizeof(path), token, sizeof(token)))
            if (text_equal(token, "shutdown"))
                obey_shutdown();
        events_wait_until(has_work, NULL);
    }
}
