// cp.async: a copy from global to shared memory that lands as late as the program allows, namely in
// the wait that names it. Until then its destination reads as NaN, from the moment of issue, so
// that both reading too early and overwriting what others still read show; a store into a pending
// destination is an error.
#pragma once
#include <cstdint>

namespace emu {

void async_copy(void* shared, const void* global, unsigned bytes, bool valid);
void async_commit();
// Lands all but the `pending` youngest groups.
void async_wait(unsigned pending);

}  // namespace emu
