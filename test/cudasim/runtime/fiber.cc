/* One stack per CUDA thread, and the switch between stacks. Stacks are kept for the next block;
   each has a guard page below it, so that an overflow is a fault and not a silent overwrite. */
#include "emulator.h"
#include <sys/mman.h>
#ifdef CUDASIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cudasim {

Fiber *current;

#ifdef CUDASIM_ASAN
static const size_t STACK = 256 << 10; /* instrumented frames are larger */
static void *scheduler_fake_stack;
static const void *scheduler_stack_bottom;
static size_t scheduler_stack_bytes;
#else
static const size_t STACK = 128 << 10;
#endif
static const size_t GUARD = 4096;

size_t stack_bytes() { return STACK; }

bool on_stack(const Fiber *fiber, const void *address) {
    return (size_t)((const char *)address - fiber->stack) < STACK;
}

bool on_guard_page(const Fiber *fiber, const void *address) {
    return (size_t)(fiber->stack - 1 - (const char *)address) < GUARD;
}

#ifndef CUDASIM_UCONTEXT

/* Saves the callee-saved registers and the stack pointer, and takes up another stack's. */
extern "C" void cudasim_switch_stack(void **save, void *to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .globl cudasim_switch_stack
    .hidden cudasim_switch_stack
    .type cudasim_switch_stack,@function
cudasim_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cudasim_switch_stack,.-cudasim_switch_stack
)");

static void *scheduler_stack_pointer;

static void swap_stacks(Fiber *from, Fiber *to) {
    cudasim_switch_stack(from ? &from->stack_pointer : &scheduler_stack_pointer,
                         to ? to->stack_pointer : scheduler_stack_pointer);
}

/* Stacks begin at different lines of a page: threads of a warp take turns, and with all of them at
   one place their frames would push one another out of the processor's cache. */
static void prepare_stack(Fiber *fiber, void (*entry)()) {
    static unsigned count;
    size_t line = count++ * 37 % 64;
    void **top = (void **)(fiber->stack + STACK - 64 * (line + 1));
    *--top = nullptr; /* the entry's return address: ends a backtrace */
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr; /* the registers that the switch pops */
    fiber->stack_pointer = top;
}

#else

static ucontext_t scheduler_context;

static void swap_stacks(Fiber *from, Fiber *to) {
    swapcontext(from ? &from->context : &scheduler_context, to ? &to->context : &scheduler_context);
}

static void prepare_stack(Fiber *fiber, void (*entry)()) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = STACK;
    makecontext(&fiber->context, entry, 0);
}

#endif

/* AddressSanitizer keeps a shadow of every stack and wants to be told of a switch on both sides. */
static void announce_switch(Fiber *from, Fiber *to) {
#ifdef CUDASIM_ASAN
    void **save = from ? &from->fake_stack : &scheduler_fake_stack;
    if (to) __sanitizer_start_switch_fiber(save, to->stack, STACK);
    else __sanitizer_start_switch_fiber(save, scheduler_stack_bottom, scheduler_stack_bytes);
#else
    (void)from, (void)to;
#endif
}

static void announce_arrival(Fiber *me) {
#ifdef CUDASIM_ASAN
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(me ? me->fake_stack : scheduler_fake_stack, &bottom, &bytes);
#else
    (void)me;
#endif
}

static void fiber_entry() {
#ifdef CUDASIM_ASAN
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!scheduler_stack_bottom) { /* the first fiber is always entered from the scheduler */
        scheduler_stack_bottom = bottom;
        scheduler_stack_bytes = bytes;
    }
#endif
    thread_main();
}

Fiber *new_fiber() {
    void *memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for another thread's stack");
    mprotect(memory, GUARD, PROT_NONE);
    Fiber *fiber = new Fiber();
    fiber->stack = (char *)memory + GUARD;
    prepare_stack(fiber, fiber_entry);
    return fiber;
}

/* What a thread sees of itself, threadIdx and blockIdx, is set here, at every switch. */
__attribute__((no_sanitize("address"))) void switch_fiber(Fiber *to) {
    Fiber *from = current;
    if (from == to) return;
    current = to;
    if (to) {
        threadIdx = to->thread;
        blockIdx = uint3{to->block->position.x, to->block->position.y, to->block->position.z};
    }
    announce_switch(from, to);
    swap_stacks(from, to);
    announce_arrival(from);
}

unsigned lane_index() { return current->lane; }
unsigned thread_index() { return current->index; }
void enter_kernel() { current->in_kernel_code = true; }
void leave_kernel() { current->in_kernel_code = false; }

} // namespace cudasim
