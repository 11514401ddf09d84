// Preloaded into a test process: counts every byte the C allocator hands out, and guards the end of
// every aligned block (PyTorch's tensors, so also the kernels' workspaces) with known bytes.
//
//   probe_reset()      peak := current, guard failures := 0
//   probe_current()    bytes now in use
//   probe_peak()       the most in use since the reset
//   probe_overruns()   aligned blocks freed with a damaged guard since the reset
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { kGuard = 256, kSlots = 1 << 16 };
static const unsigned char kPattern = 0xA5;

static int64_t current, peak, overruns;

// Aligned blocks by address, open addressing; a freed slot keeps its address and has size -1.
static struct {
  void* block;
  int64_t size;
} slots[kSlots];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static size_t slot_of(const void* block) { return ((uintptr_t)block >> 6) * 0x9E3779B1u % kSlots; }

static void count(int64_t bytes) {
  const int64_t now = __atomic_add_fetch(&current, bytes, __ATOMIC_RELAXED);
  int64_t seen = __atomic_load_n(&peak, __ATOMIC_RELAXED);
  while (now > seen &&
         !__atomic_compare_exchange_n(&peak, &seen, now, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

static void remember(void* block, int64_t size) {
  pthread_mutex_lock(&mutex);
  size_t i = slot_of(block), tried = 0;
  while (slots[i].block && slots[i].block != block && slots[i].size >= 0 && ++tried < kSlots)
    i = (i + 1) % kSlots;
  slots[i].block = block;
  slots[i].size = size;
  pthread_mutex_unlock(&mutex);
}

static int64_t forget(const void* block) {
  int64_t size = -1;
  pthread_mutex_lock(&mutex);
  for (size_t i = slot_of(block), tried = 0; slots[i].block && tried < kSlots;
       i = (i + 1) % kSlots, ++tried)
    if (slots[i].block == block && slots[i].size >= 0) {
      size = slots[i].size;
      slots[i].size = -1;
      break;
    }
  pthread_mutex_unlock(&mutex);
  return size;
}

void* malloc(size_t size) {
  void* block = __libc_malloc(size);
  if (block) count((int64_t)malloc_usable_size(block));
  return block;
}

void* calloc(size_t items, size_t size) {
  void* block = __libc_calloc(items, size);
  if (block) count((int64_t)malloc_usable_size(block));
  return block;
}

void* realloc(void* old, size_t size) {
  const int64_t before = old ? (int64_t)malloc_usable_size(old) : 0;
  if (old) forget(old);
  void* block = __libc_realloc(old, size);
  if (block || size == 0) count((block ? (int64_t)malloc_usable_size(block) : 0) - before);
  return block;
}

static void* guarded(size_t alignment, size_t size) {
  unsigned char* block = __libc_memalign(alignment, size + kGuard);
  if (!block) return NULL;
  memset(block + size, kPattern, kGuard);
  remember(block, (int64_t)size);
  count((int64_t)malloc_usable_size(block));
  return block;
}

int posix_memalign(void** out, size_t alignment, size_t size) {
  void* block = guarded(alignment, size);
  if (!block) return ENOMEM;
  *out = block;
  return 0;
}

void* aligned_alloc(size_t alignment, size_t size) { return guarded(alignment, size); }
void* memalign(size_t alignment, size_t size) { return guarded(alignment, size); }

void free(void* block) {
  if (!block) return;
  const int64_t size = forget(block);
  if (size >= 0)
    for (int i = 0; i < kGuard; ++i)
      if (((unsigned char*)block)[size + i] != kPattern) {
        __atomic_add_fetch(&overruns, 1, __ATOMIC_RELAXED);
        break;
      }
  count(-(int64_t)malloc_usable_size(block));
  __libc_free(block);
}

void probe_reset(void) {
  __atomic_store_n(&peak, __atomic_load_n(&current, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
  __atomic_store_n(&overruns, 0, __ATOMIC_RELAXED);
}
int64_t probe_current(void) { return __atomic_load_n(&current, __ATOMIC_RELAXED); }
int64_t probe_peak(void) { return __atomic_load_n(&peak, __ATOMIC_RELAXED); }
int64_t probe_overruns(void) { return __atomic_load_n(&overruns, __ATOMIC_RELAXED); }
