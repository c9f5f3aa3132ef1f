// What the machine can execute, and which of the built instruction sets is used.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "isa.h"
#include "threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace eq {
namespace {

const char* const kNames[EQ_ISA_COUNT] = {"reference", "avx2", "avx_vnni", "avx512_vnni", "amx_int8", "neon", "neon_dot"};

thread_local char last_error[512] = "";

#if defined(__x86_64__)
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

unsigned long long enabled_states() {
  if (!(Leaf(1, 0).c >> 27 & 1)) return 0;  // OSXSAVE
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (unsigned long long)high << 32 | low;
}

bool has(unsigned word, int bit) { return word >> bit & 1; }

bool amx_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool detect(int isa) {
  const unsigned long long states = enabled_states();
  const Leaf one(1, 0), seven(7, 0), more(7, 1);
  const bool avx2 = (states & 0x6) == 0x6 && has(one.c, 28) && has(one.c, 12) && has(seven.b, 5);  // AVX, FMA, AVX2
  const bool avx512 = avx2 && (states & 0xe6) == 0xe6 && has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) &&
                      has(seven.b, 31) && has(seven.c, 11) && has(seven.c, 1);  // F, DQ, BW, VL, VNNI, VBMI
  switch (isa) {
    case EQ_ISA_AVX2: return avx2;
    case EQ_ISA_AVX_VNNI: return avx2 && has(more.a, 4);
    case EQ_ISA_AVX512_VNNI: return avx512;
    case EQ_ISA_AMX_INT8:
      return avx512 && (states & 0x60000) == 0x60000 && has(seven.d, 24) && has(seven.d, 25) && amx_permitted();
    default: return false;
  }
}
#elif defined(__aarch64__) && defined(__linux__)
bool detect(int isa) {
  if (isa == EQ_ISA_NEON) return true;
  return isa == EQ_ISA_NEON_DOT && (getauxval(AT_HWCAP) >> 20 & 1);  // ASIMDDP
}
#else
bool detect(int) { return false; }
#endif

const Isa* table(int isa) {
  switch (isa) {
    case EQ_ISA_REFERENCE: return portable_isa();
#if defined(EQ_BUILD_AVX2)
    case EQ_ISA_AVX2: return avx2_isa();
#endif
#if defined(EQ_BUILD_AVX_VNNI)
    case EQ_ISA_AVX_VNNI: return avx_vnni_isa();
#endif
#if defined(EQ_BUILD_AVX512_VNNI)
    case EQ_ISA_AVX512_VNNI: return avx512_vnni_isa();
#endif
#if defined(EQ_BUILD_AMX_INT8)
    case EQ_ISA_AMX_INT8: return amx_isa();
#endif
#if defined(EQ_BUILD_NEON)
    case EQ_ISA_NEON: return neon_isa();
#endif
#if defined(EQ_BUILD_NEON_DOT)
    case EQ_ISA_NEON_DOT: return neon_dot_isa();
#endif
    default: return nullptr;
  }
}

bool built(int isa) {
  switch (isa) {
    case EQ_ISA_REFERENCE: return true;
#if defined(EQ_BUILD_AVX2)
    case EQ_ISA_AVX2: return true;
#endif
#if defined(EQ_BUILD_AVX_VNNI)
    case EQ_ISA_AVX_VNNI: return true;
#endif
#if defined(EQ_BUILD_AVX512_VNNI)
    case EQ_ISA_AVX512_VNNI: return true;
#endif
#if defined(EQ_BUILD_AMX_INT8)
    case EQ_ISA_AMX_INT8: return true;
#endif
#if defined(EQ_BUILD_NEON)
    case EQ_ISA_NEON: return true;
#endif
#if defined(EQ_BUILD_NEON_DOT)
    case EQ_ISA_NEON_DOT: return true;
#endif
    default: return false;
  }
}

bool supported(int isa) {
  static const unsigned found = [] {
    unsigned bits = 1;
    for (int i = 1; i < EQ_ISA_COUNT; ++i) bits |= detect(i) ? 1u << i : 0u;
    return bits;
  }();
  return isa >= 0 && isa < EQ_ISA_COUNT && (found >> isa & 1);
}

}  // namespace

int fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return -1;
}

const Isa* find_isa(int isa) {
  if (isa < 0 || isa >= EQ_ISA_COUNT || !built(isa)) {
    fail("instruction set %s is not built", isa >= 0 && isa < EQ_ISA_COUNT ? kNames[isa] : "(unknown)");
    return nullptr;
  }
  if (!supported(isa)) {
    fail("this machine does not support the instruction set %s", kNames[isa]);
    return nullptr;
  }
  return table(isa);
}

}  // namespace eq

extern "C" {

int eq_isa_built(int isa) { return eq::built(isa); }
int eq_isa_supported(int isa) { return eq::supported(isa); }
const char* eq_isa_name(int isa) { return isa >= 0 && isa < EQ_ISA_COUNT ? eq::kNames[isa] : ""; }

int eq_isa_default(void) {
  int cap = EQ_ISA_COUNT - 1;
  if (const char* wanted = std::getenv("EVOQUANT_ISA")) {
    for (cap = 0; cap < EQ_ISA_COUNT && std::strcmp(wanted, eq::kNames[cap]) != 0;) ++cap;
    if (cap == EQ_ISA_COUNT) return eq::fail("EVOQUANT_ISA='%s' is not the name of an instruction set", wanted);
  }
  for (int isa = cap; isa > 0; --isa)
    if (eq::built(isa) && eq::supported(isa)) return isa;
  return EQ_ISA_REFERENCE;
}

const char* eq_compiler(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

const char* eq_version(void) { return EQ_VERSION; }
const char* eq_last_error(void) { return eq::last_error; }

void eq_set_threads(int threads) { eq::set_thread_count(threads < 1 ? 1 : threads); }
int eq_threads(void) { return eq::thread_count(); }

}  // extern "C"
