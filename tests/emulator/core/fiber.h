// A fiber: a stack of its own and a switch to and from the scheduler's stack.
//
// x86-64 switches in 15 instructions. On other machines, or with -DEMU_UCONTEXT, swapcontext switches with a system
// call each time. AddressSanitizer is told about every switch. A stack is unpoisoned before it is used again, because a
// block that ends with a fault does not unwind its fibers.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define EMU_ASAN 0
#endif

#if !defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT
#endif

#ifdef EMU_UCONTEXT
#include <ucontext.h>
#else
extern "C" void resnet_fused_emu_switch(void** save, void* load);
#endif

namespace emu {

constexpr size_t kStackBytes = EMU_ASAN ? 256 * 1024 : 64 * 1024;

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls entry() on a fresh stack. entry ends with leave() and never returns.
  void start(void (*entry)()) {
    if (stack_ == nullptr) allocate();
#if EMU_ASAN
    __asan_unpoison_memory_region(stack_, kStackBytes);
    fake_ = nullptr;
#endif
    entry_ = entry;
#ifdef EMU_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::first, 0);
#else
    // The stack looks as if address 0 had just called first(): it is 8 past a multiple of 16 and has six saved
    // registers.
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 3;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(&Fiber::first);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    sp_ = top;
#endif
  }

  // Switches from the scheduler to the fiber. Returns when the fiber pauses or leaves.
  void resume() {
    running_ = this;
#if EMU_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStackBytes);
#endif
#ifdef EMU_UCONTEXT
    swapcontext(&scheduler_context_, &context_);
#else
    resnet_fused_emu_switch(&scheduler_sp_, sp_);
#endif
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  static void pause() { running_->back(false); }
  static void leave() { running_->back(true); }

 private:
  void allocate() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* p = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) != 0) throw std::bad_alloc();
    stack_ = static_cast<char*>(p) + page;  // the page below stays inaccessible, so that an overflow faults at once
  }

  static void first() {
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom_, &scheduler_size_);
#endif
    running_->entry_();
  }

  void back(bool last) {
#if EMU_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_, scheduler_bottom_, scheduler_size_);
#endif
    (void)last;
#ifdef EMU_UCONTEXT
    swapcontext(&context_, &scheduler_context_);
#else
    resnet_fused_emu_switch(&sp_, scheduler_sp_);
#endif
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(fake_, &scheduler_bottom_, &scheduler_size_);
#endif
  }

  char* stack_ = nullptr;
  void (*entry_)() = nullptr;
#ifdef EMU_UCONTEXT
  ucontext_t context_;
  static inline ucontext_t scheduler_context_;
#else
  void* sp_ = nullptr;
  static inline void* scheduler_sp_ = nullptr;
#endif
#if EMU_ASAN
  void* fake_ = nullptr;
  static inline const void* scheduler_bottom_ = nullptr;
  static inline size_t scheduler_size_ = 0;
#endif
  static inline Fiber* running_ = nullptr;
};

}  // namespace emu
