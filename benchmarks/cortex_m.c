/* Runs an exported policy on an emulated Cortex-M4F; cortex_m.py compiles and reads it. */
#include "messages.h"
#include "robot.h"

#define REGISTER(address) (*(volatile unsigned *)(address))
#define SYSTICK_CONTROL REGISTER(0xE000E010)
#define SYSTICK_RELOAD REGISTER(0xE000E014)
#define SYSTICK_VALUE REGISTER(0xE000E018)
#define FPU_ACCESS REGISTER(0xE000ED88)

extern unsigned data_from[], data_start[], data_end[], bss_start[], bss_end[], stack_top[];
extern unsigned stack_bottom[];
int main(void);

static int semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void reset_handler(void)
{
    FPU_ACCESS |= 0xfu << 20;
    __asm__ volatile("dsb\nisb");
    for (unsigned *to = data_start, *from = data_from; to < data_end;)
        *to++ = *from++;
    for (unsigned *to = bss_start; to < bss_end;)
        *to++ = 0;
    main();
    semihost(0x18, (const void *)0x20026); /* exit */
    for (;;)
        ;
}

static void fault_handler(void)
{
    semihost(0x04, "fault\n");
    semihost(0x18, (const void *)0x20024);
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    stack_top,     reset_handler, fault_handler, fault_handler, fault_handler, fault_handler,
    fault_handler, 0,             0,             0,             0,             fault_handler,
    fault_handler, 0,             fault_handler, fault_handler,
};

static void print_word(unsigned word, const char *after)
{
    char text[9];
    for (int i = 0; i < 8; i++)
        text[i] = "0123456789abcdef"[word >> (28 - 4 * i) & 15];
    text[8] = 0;
    semihost(0x04, text);
    semihost(0x04, after);
}

static robot policy;
static unsigned ticks[4]; /* hold_image, hold_imu, advance, command */

static unsigned now(void)
{
    return 0xffffffu - SYSTICK_VALUE;
}

__attribute__((noinline)) static void run(void)
{
    static float command[ROBOT_OUTPUTS];
    robot_init(&policy);
    for (int k = 0; k < MESSAGES; k++) {
        unsigned begun;
#if ROBOT_FEATURES
        if (k % IMAGE_EVERY == 0) {
            begun = now();
            robot_hold_image(&policy, message_image[k / IMAGE_EVERY]);
            ticks[0] += (now() - begun) & 0xffffff;
        }
        robot_hold_image_age(&policy, message_age[k]);
#endif
        begun = now();
        robot_hold_imu(&policy, message_imu[k]);
        ticks[1] += (now() - begun) & 0xffffff;
        begun = now();
        robot_advance(&policy, message_dt[k]);
        ticks[2] += (now() - begun) & 0xffffff;
        begun = now();
        robot_command(&policy, command);
        ticks[3] += (now() - begun) & 0xffffff;
        for (int i = 0; i < ROBOT_OUTPUTS; i++) {
            unsigned bits;
            __builtin_memcpy(&bits, &command[i], sizeof bits);
            print_word(bits, i + 1 < ROBOT_OUTPUTS ? " " : "\n");
        }
    }
}

int main(void)
{
    SYSTICK_RELOAD = 0xffffff;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 5;
    unsigned *here = __builtin_frame_address(0);
    for (unsigned *p = stack_bottom; p < here - 16; p++)
        *p = 0xa5a5a5a5;
    run();
    unsigned *deepest = stack_bottom;
    while (*deepest == 0xa5a5a5a5)
        deepest++;
    semihost(0x04, "figures ");
    print_word((unsigned)((char *)here - (char *)deepest), " ");
    print_word(sizeof policy, " ");
    for (int i = 0; i < 4; i++)
        print_word(ticks[i], i < 3 ? " " : "\n");
    return 0;
}
