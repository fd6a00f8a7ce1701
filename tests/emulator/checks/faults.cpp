// Wrong uses of the instructions. The emulator must refuse each with a message that names the mistake, under every seed
// and policy. On a GPU a wrong use would hang or silently give wrong numbers, so only the emulator runs them.
#include "emulator/checks/harness.h"

namespace micro {

using ptx::bar_sync, ptx::lane, ptx::ld_shared, ptx::smem_base, ptx::st_shared, ptx::sync_threads, ptx::sync_warp,
    ptx::tid, ptx::warp;

struct Wrong {
  const char* name;
  void (*kernel)(char* global);
  size_t shared_bytes;
  const char* message;
};

// Each thread copies 16 bytes to its own slot and commits the copy.
void start_copy(const char* global) {
  ptx::cp_async16(smem_base() + 16 * tid(), global + 16 * tid(), 16);
  ptx::cp_async_commit();
}

const Wrong kWrong[] = {
    {"read of another warp's word without sync_threads",
     [](char*) {
       st_shared(smem_base() + 4 * tid(), tid());
       if (warp() == 0) sync_warp();
       ld_shared<int>(smem_base() + 4 * (tid() ^ 32));
     },
     512, "reads "},
    {"read of another lane's word without sync_warp",
     [](char*) {
       st_shared(smem_base() + 4 * tid(), tid());
       ld_shared<int>(smem_base() + 4 * (tid() ^ 1));
     },
     512, "reads "},
    {"a shuffle in the place of sync_warp",
     [](char*) {
       st_shared(smem_base() + 4 * tid(), tid());
       ptx::shfl_xor(1, 1);
       ld_shared<int>(smem_base() + 4 * (tid() ^ 1));
     },
     512, "race: reads"},
    {"ldmatrix of rows other lanes wrote, without sync_warp",
     [](char*) {
       st_shared(smem_base() + 16 * tid(), ptx::Words4{});
       uint32_t r[4];
       ptx::ldmatrix_x4(r, smem_base() + 16 * (tid() ^ 1));
     },
     2048, "race: reads"},
    {"overwrite of what another warp may still read",
     [](char*) {
       st_shared(smem_base() + 4 * tid(), tid());
       sync_threads();
       ld_shared<int>(smem_base() + 4 * (tid() ^ 32));
       st_shared(smem_base() + 4 * tid(), 0);
     },
     512, "race: "},
    {"overwrite of what another lane may still read",
     [](char*) {
       st_shared(smem_base() + 4 * tid(), tid());
       sync_threads();
       ld_shared<int>(smem_base() + 4 * (tid() ^ 1));
       st_shared(smem_base() + 4 * tid(), 0);
     },
     512, "race: "},
    {"two threads write one word", [](char*) { st_shared(smem_base() + 4 * (tid() / 2), tid()); }, 512,
     "race: two threads write"},
    {"a barrier that half of the readers skip",
     [](char*) {
       st_shared(smem_base() + 4 * tid(), tid());
       if (warp() < 2) bar_sync(1, 64);
       ld_shared<int>(smem_base() + 4 * ((tid() + 64) % 128));
     },
     512, "reads "},
    {"a release used twice",  // bar_arrive does not publish what is written after it
     [](char*) {
       if (warp() < 2) {
         ptx::bar_arrive(1, 128);
         st_shared(smem_base() + 4 * tid(), tid());
       } else {
         bar_sync(1, 128);
         ld_shared<int>(smem_base() + 4 * (tid() - 64));
       }
     },
     512, "reads "},
    {"bytes never written", [](char*) { ld_shared<uint16_t>(smem_base() + 2 * tid()); }, 512, "never written"},
    {"a wide read that is half written",
     [](char*) {
       st_shared(smem_base() + 8 * tid(), 1);
       ld_shared<ptx::Words2>(smem_base() + 8 * tid());
     },
     1024, "never written"},
    {"below shared memory", [](char*) { st_shared(smem_base() - 4, 1); }, 512, "outside the 512 bytes"},
    {"past shared memory", [](char*) { st_shared(smem_base() + 4 * tid() + 4, 1); }, 512, "outside the 512 bytes"},
    {"ldmatrix past shared memory",
     [](char*) {
       st_shared(smem_base() + 16 * tid(), ptx::Words4{});
       sync_threads();
       uint32_t r[4];
       ptx::ldmatrix_x4(r, smem_base() + 16 * (tid() + 1));
     },
     2048, "outside the 2048 bytes"},
    {"shared access not aligned", [](char*) { st_shared(smem_base() + 8 * tid() + 4, ptx::Words2{}); }, 2048,
     "not aligned"},
    {"global access not aligned", [](char* g) { ptx::ld_global<ptx::Words4>(g + 16 * tid() + 8); }, 0, "misaligned"},
    {"global store not aligned", [](char* g) { ptx::st_global(g + 16 * tid() + 2, 1); }, 0, "misaligned"},
    {"cp.async source not aligned", [](char* g) { ptx::cp_async16(smem_base() + 16 * tid(), g + 16 * tid() + 8, 16); },
     2048, "misaligned"},
    {"cp.async destination not aligned",
     [](char* g) { ptx::cp_async16(smem_base() + 16 * tid() + 8, g + 16 * tid(), 16); }, 4096, "not aligned"},
    {"cp.async of 17 bytes", [](char* g) { ptx::cp_async16(smem_base() + 16 * tid(), g, 17); }, 2048, "source size 17"},
    {"cp.async read without wait",
     [](char* g) {
       start_copy(g);
       ld_shared<int>(smem_base() + 16 * tid());
     },
     2048, "not been waited for"},
    {"cp.async waited for but not committed",
     [](char* g) {
       ptx::cp_async16(smem_base() + 16 * tid(), g + 16 * tid(), 16);
       ptx::cp_async_wait<0>();
       ld_shared<int>(smem_base() + 16 * tid());
     },
     2048, "not been waited for"},
    {"cp.async wait one group too lax",
     [](char* g) {
       start_copy(g);
       ptx::cp_async_wait<1>();
       ld_shared<int>(smem_base() + 16 * tid());
     },
     2048, "not been waited for"},
    {"cp.async of another warp without a barrier",
     [](char* g) {
       start_copy(g);
       ptx::cp_async_wait<0>();
       ld_shared<int>(smem_base() + 16 * (tid() ^ 32));
     },
     2048, "reads "},
    {"cp.async of another thread: the barrier before the wait",
     [](char* g) {
       start_copy(g);
       sync_threads();
       ptx::cp_async_wait<0>();
       ld_shared<int>(smem_base() + 16 * (tid() ^ 32));
     },
     2048, "reads "},
    {"cp.async into a stage others still read",
     [](char* g) {
       start_copy(g);
       ptx::cp_async_wait<0>();
       sync_threads();
       ld_shared<int>(smem_base() + 16 * (tid() ^ 32));
       start_copy(g);
       ptx::cp_async_wait<0>();
     },
     2048, " at shared address"},
    {"store over a cp.async in flight",
     [](char* g) {
       start_copy(g);
       st_shared(smem_base() + 16 * tid(), 1);
     },
     2048, "still in flight"},
    {"end with a cp.async under way", [](char* g) { start_copy(g); }, 2048, "has not waited for"},
    {"one lane skips sync_warp",
     [](char*) {
       if (lane() != 7) sync_warp();
     },
     0, "sync_warp"},
    {"one lane skips ldmatrix and meets the others in a shuffle",
     [](char*) {
       st_shared(smem_base() + 16 * tid(), ptx::Words4{});
       sync_warp();
       uint32_t r[4];
       if (lane() != 3) ptx::ldmatrix_x4(r, smem_base() + 16 * tid());
       ptx::shfl_xor(1, 1);
     },
     2048, "diverges"},
    {"one lane skips sync_threads",
     [](char*) {
       if (tid() != 40) sync_threads();
     },
     0, "sync_threads"},
    {"one warp skips sync_threads",
     [](char*) {
       if (warp() != 1) sync_threads();
     },
     0, "deadlock: 32 threads have ended"},
    {"lanes of a warp at different barriers", [](char*) { bar_sync(1 + lane() / 16, 64); }, 0, "different barriers"},
    {"a named barrier too few threads reach",
     [](char*) {
       if (warp() == 0) bar_sync(1, 64);
     },
     0, "deadlock: "},
    {"a named barrier with two counts", [](char*) { bar_sync(1, warp() == 0 ? 64 : 128); }, 0, "for the others"},
    {"a named barrier of 40 threads", [](char*) { bar_sync(1, 40); }, 0, "barrier 1 of 40 threads"},
    {"barrier 16", [](char*) { bar_sync(16, 128); }, 0, "there are 16"},
};

__global__ void wrong_kernel(const Wrong* wrong, char* global) { wrong->kernel(global); }

void refuse(const Wrong& wrong) {
  Buffer<char> global(8192);
  std::string message;
  try {
    run(wrong_kernel, {2}, 128, wrong.shared_bytes, &wrong, global.get());
  } catch (const emu::Fault& fault) {
    message = fault.what();
  }
  expect(!message.empty(), "was not noticed");
  expect(message.find(wrong.message) != std::string::npos, "another message: " + message);
}

}  // namespace micro

int main() {
  std::vector<micro::Check> checks;
  for (const micro::Wrong& wrong : micro::kWrong) checks.push_back({wrong.name, [&wrong] { micro::refuse(wrong); }});
  checks.push_back({"a block of 33 threads", [] {
                      try {
                        micro::run(micro::wrong_kernel, {1}, 33, 0, nullptr, nullptr);
                      } catch (const emu::Fault&) {
                        return;
                      }
                      micro::expect(false, "was not noticed");
                    }});
  return micro::run_all(checks, 5) == 0 ? 0 : 1;
}
