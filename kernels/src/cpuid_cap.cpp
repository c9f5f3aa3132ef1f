// Makes CPUID answer this thread, and threads that it starts, as a processor with fewer instruction sets would, so that
// another library that chooses its kernels by CPUID can be compared on equal instructions. Linux on x86-64 with CPUID
// faulting: the instruction then raises SIGSEGV, and the handler executes it, takes features out and goes on behind it.
#include "isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace eq {
namespace {

constexpr int kSetCpuid = 0x1012;  // ARCH_SET_CPUID

struct sigaction before;
int cap = -1;

long let_cpuid(bool executes) { return syscall(SYS_arch_prctl, kSetCpuid, executes ? 1L : 0L); }

constexpr unsigned bits() { return 0; }
template <class... Rest>
constexpr unsigned bits(int first, Rest... rest) { return 1u << first | bits(rest...); }

// Registers of leaf 7 without what a processor of the instruction set does not have.
void take_out(unsigned sub, unsigned& a, unsigned& b, unsigned& c, unsigned& d) {
  if (cap < EQ_ISA_AMX_INT8 && sub == 0) d &= ~bits(22, 24, 25);                            // AMX: BF16, TILE, INT8
  if (cap < EQ_ISA_AMX_INT8 && sub == 1) a &= ~bits(21), d &= ~bits(8);                      // AMX: FP16, COMPLEX
  if (cap < EQ_ISA_AVX512_VNNI && sub == 0) {
    b &= ~bits(16, 17, 21, 26, 27, 28, 30, 31);  // AVX512: F, DQ, IFMA, PF, ER, CD, BW, VL
    c &= ~bits(1, 6, 11, 12, 14);                // VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
    d &= ~bits(2, 3, 8, 23);                     // 4VNNIW, 4FMAPS, VP2INTERSECT, FP16
  }
  if (cap < EQ_ISA_AVX512_VNNI && sub == 1) a &= ~bits(5), d &= ~bits(19);                   // AVX512_BF16, AVX10
  if (cap < EQ_ISA_AVX_VNNI && sub == 1) a &= ~bits(4), d &= ~bits(4, 10);                   // AVX-VNNI: all forms
}

void on_fault(int, siginfo_t*, void* context) {
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const unsigned char* at = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
  if (at[0] != 0x0f || at[1] != 0xa2) {  // not CPUID: whoever handled it before gets it again
    sigaction(SIGSEGV, &before, nullptr);
    return;
  }
  const unsigned leaf = (unsigned)registers[REG_RAX], sub = (unsigned)registers[REG_RCX];
  unsigned a = leaf, b = 0, c = sub, d = 0;
  let_cpuid(true);
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  let_cpuid(false);
  if (leaf == 7) take_out(sub, a, b, c, d);
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

}  // namespace
}  // namespace eq

extern "C" int eq_cap_cpuid(int isa) {
  using namespace eq;
  if (isa < EQ_ISA_AVX2 || isa > EQ_ISA_AMX_INT8) return fail("cap_cpuid: %d is not an x86 instruction set", isa);
  if (cap >= 0) return fail("cap_cpuid: it is capped already");
  struct sigaction mine{};
  mine.sa_sigaction = on_fault;
  mine.sa_flags = SA_SIGINFO;
  if (sigaction(SIGSEGV, &mine, &before) != 0) return fail("cap_cpuid: %s", std::strerror(errno));
  cap = isa;
  if (let_cpuid(false) == 0) return 0;
  const int reason = errno;
  cap = -1;
  sigaction(SIGSEGV, &before, nullptr);
  return fail("cap_cpuid: this machine or kernel has no CPUID faulting (%s)", std::strerror(reason));
}

extern "C" void eq_uncap_cpuid(void) {
  using namespace eq;
  if (cap < 0) return;
  let_cpuid(true);
  sigaction(SIGSEGV, &before, nullptr);
  cap = -1;
}

#else

extern "C" int eq_cap_cpuid(int) { return eq::fail("cap_cpuid: needs Linux on x86-64"); }
extern "C" void eq_uncap_cpuid(void) {}

#endif
