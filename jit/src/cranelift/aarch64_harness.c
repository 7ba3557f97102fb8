// Runs Cranelift's code for AArch64, for `aarch64_tests.rs`, which also writes the header included here: addresses,
// offsets into a vCPU, kinds of pending flags.
//
// usage: harness JOBS RESULTS. A job is a piece of code with the vCPU, TLB, slots and guest RAM it runs on; a result
// is the word it returned, and what became of vCPU and RAM.

#include "layout.h"
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TEXT(x) #x
#define NUMBER(x) TEXT(x)

// At the address given to the linker, 64 bytes each. CallConv::Tail on AArch64: arguments from X2 on, the result in
// X2; it keeps what the platform's convention keeps.
asm(".section .stubs, \"ax\"\n"
    // (vcpu, budget, slot): a slot that leads nowhere.
    ".balign 64\n ldr x9, =" NUMBER(BUDGET) "\n str x3, [x2, x9]\n mov x2, x4\n ret\n .ltorg\n"
    ".balign 64\n b run_helper\n"
    ".balign 64\n b run_last\n"
    ".balign 64\n b refill\n"
    ".balign 64\n b settle_flags\n"
    // uint64_t enter(vcpu, budget, code)
    ".balign 64\n .global enter\n enter:\n"
    " stp x29, x30, [sp, #-16]!\n mov x29, sp\n mov x9, x2\n mov x2, x0\n mov x3, x1\n mov x4, xzr\n"
    " blr x9\n mov x0, x2\n ldp x29, x30, [sp], #16\n ret\n"
    ".text\n");

uint64_t enter(void *vcpu, int64_t budget, uint64_t code);

static uint64_t *quad(uint8_t *vcpu, unsigned offset) { return (uint64_t *)(vcpu + offset); }

// Helpers are the interpreter's: the code leaves before them.
static void leave_before(uint8_t *vcpu, int64_t budget, int64_t rest, int64_t delta) {
    *quad(vcpu, BUDGET) = budget + rest;
    *quad(vcpu, RIP) += delta;
}

int64_t run_helper(uint8_t *vcpu, void *insn, int64_t budget, int64_t rest, int64_t delta) {
    leave_before(vcpu, budget, rest, delta);
    return -1;
}

void run_last(uint8_t *vcpu, void *insn, int64_t budget, int64_t rest, int64_t delta) {
    leave_before(vcpu, budget, rest, delta);
}

// The TLB holds all that there is.
uint32_t refill(void *vcpu, uint64_t address, uint32_t what) { return 0; }

// What `Vcpu::settle_flags` does.
void settle_flags(uint8_t *vcpu) {
    unsigned kind = vcpu[PENDING_KIND], bits = vcpu[PENDING_W] * 8;
    if (kind == PENDING_NONE)
        return;
    uint64_t a = *quad(vcpu, PENDING_A), b = *quad(vcpu, PENDING_B), r = *quad(vcpu, PENDING_R);
    uint64_t sign = 1ull << (bits - 1);
    int bit = vcpu[PENDING_BIT], top = (r & sign) != 0, next = (r & sign >> 1) != 0;
    int cf = vcpu[LAZY_CF], of = 0, af = 0;
    uint64_t zero = r, sign_parity = (uint64_t)((int64_t)(r << (64 - bits)) >> (64 - bits));
    switch (kind) {
    case PENDING_ADD: cf = r < a; break;
    case PENDING_ADC: cf = (((a & b) | ((a | b) & ~r)) & sign) != 0; break;
    case PENDING_SUB: cf = a < b; break;
    case PENDING_SBB: cf = (((~a & (b | r)) | (b & r)) & sign) != 0; break;
    case PENDING_LOGIC: cf = 0; break;
    case PENDING_INC: of = r == sign; af = (r & 15) == 0; break;
    case PENDING_DEC: of = r == sign - 1; af = (r & 15) == 15; break;
    case PENDING_NEG: cf = a != 0; of = r == sign; af = (a & 15) != 0; break;
    case PENDING_SHL: cf = bit; of = bit ^ top; break;
    case PENDING_SHR: cf = bit; of = top ^ next; break;
    case PENDING_MUL: cf = of = bit; break;
    case PENDING_SCAN: cf = 0; zero = !bit; break;
    case PENDING_COUNT: cf = 0; sign_parity = 1; break;
    default: fprintf(stderr, "pending flags of kind %u\n", kind); exit(2);
    }
    if (kind == PENDING_ADD || kind == PENDING_ADC)
        of = ((a ^ r) & (b ^ r) & sign) != 0;
    if (kind == PENDING_SUB || kind == PENDING_SBB)
        of = ((a ^ b) & (a ^ r) & sign) != 0;
    if (kind >= PENDING_ADD && kind <= PENDING_SBB)
        af = (a ^ b ^ r) >> 4 & 1;
    vcpu[LAZY_CF] = cf, vcpu[LAZY_OF] = of, vcpu[LAZY_AF] = af;
    *quad(vcpu, LAZY_ZERO) = zero, *quad(vcpu, LAZY_SIGN_PARITY) = sign_parity;
    vcpu[PENDING_KIND] = PENDING_NONE;
}

static volatile int job;

static void crashed(int number) {
    char text[64];
    int len = snprintf(text, sizeof text, "signal %d in job %d\n", number, job);
    if (write(2, text, len) < 0)
        _exit(4);
    _exit(3);
}

static void *map(uint64_t address, size_t len) {
    int rights = PROT_READ | PROT_WRITE | PROT_EXEC;
    void *at = mmap((void *)address, len, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at != (void *)address) {
        perror("mmap");
        exit(2);
    }
    return at;
}

// A length, and so many bytes.
static size_t get(FILE *jobs, void *to, size_t most) {
    uint64_t len;
    if (fread(&len, 8, 1, jobs) != 1 || len > most || fread(to, 1, len, jobs) != len) {
        fprintf(stderr, "the jobs end early, or one is too large\n");
        exit(2);
    }
    return len;
}

int main(int argc, char **argv) {
    FILE *jobs = fopen(argv[1], "rb"), *results = fopen(argv[2], "wb");
    if (!jobs || !results) {
        perror("files");
        return 2;
    }
    signal(SIGSEGV, crashed), signal(SIGILL, crashed), signal(SIGBUS, crashed);
    size_t room = 1 << 20;
    void *vcpu = map(AT_VCPU, room), *tlb = map(AT_TLB, room), *slots = map(AT_SLOTS, room);
    void *code = map(AT_CODE, room), *ram = map(AT_RAM, room);
    map(AT_ZEROS, room);
    for (uint64_t at = AT_STUBS_MADE, n = 0; n < 2; at += 0x1000, n++) {
        void *stub = map(at, 0x1000);
        __builtin___clear_cache(stub, (char *)stub + get(jobs, stub, 0x1000));
    }
    uint64_t count;
    if (get(jobs, &count, 8) != 8)
        return 2;
    for (job = 0; job < (int)count; job++) {
        int64_t budget;
        get(jobs, &budget, 8);
        size_t len = get(jobs, code, room);
        __builtin___clear_cache(code, (char *)code + len);
        size_t vcpu_len = get(jobs, vcpu, room);
        get(jobs, tlb, room), get(jobs, slots, room);
        size_t ram_len = get(jobs, ram, room);
        uint64_t word = enter(vcpu, budget, AT_CODE);
        settle_flags(vcpu);
        fwrite(&word, 8, 1, results), fwrite(vcpu, 1, vcpu_len, results), fwrite(ram, 1, ram_len, results);
    }
    return fclose(results) == 0 ? 0 : 2;
}
