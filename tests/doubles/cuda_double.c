/* A CUDA runtime over host memory, with CUDA's own names and codes, that counts what is given out.
 *
 * What the tests of buffers, streams, events and graphs are run against where there is no GPU: through
 * ctypes, as the real one is. A stream does its work at once, but a captured copy or kernel only when its graph
 * is launched. `double_live` is what was given out and not given back; `double_fail_after(n)` lets the
 * n-th call from now fail with cudaErrorMemoryAllocation. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
enum { OK = 0, NO_MEMORY = 2, INVALID = 1, CAPTURE_INVALID = 901 };

typedef struct { int kind; int capturing; int nodes; double at; } Handle; /* kinds: 1 stream 2 event 3 graph 4 exec */
static long live, calls, fail_at = -1, launches, copied;
static void (*kernel)(void);

EXPORT long double_live(void) { return live; }
EXPORT long double_calls(void) { return calls; }
EXPORT long double_launches(void) { return launches; }
EXPORT long double_copied(void) { return copied; }
EXPORT void double_fail_after(long n) { fail_at = n < 0 ? -1 : calls + n; }
EXPORT void double_kernel(void (*run)(void)) { kernel = run; }

static int enter(void) { return ++calls == fail_at ? NO_MEMORY : OK; }
#define ENTER do { int code = enter(); if (code) return code; } while (0)

static double now_ms(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }
static int make(void **out, int kind) { Handle *h = calloc(1, sizeof *h); h->kind = kind; live++; *out = h; return OK; }
static int drop(void *p, int kind) { Handle *h = p; if (!h || h->kind != kind) return INVALID; h->kind = 0; free(h); live--; return OK; }
static Handle *as(void *p, int kind) { Handle *h = p; return h && h->kind == kind ? h : 0; }

EXPORT const char *cudaGetErrorName(int c) { return c == NO_MEMORY ? "cudaErrorMemoryAllocation" : c == INVALID ? "cudaErrorInvalidValue" : "cudaErrorStreamCaptureInvalidated"; }
EXPORT const char *cudaGetErrorString(int c) { return c == NO_MEMORY ? "out of memory" : c == INVALID ? "invalid argument" : "operation failed due to a previous error during capture"; }
EXPORT int cudaRuntimeGetVersion(int *v) { *v = 12060; return OK; }
EXPORT int cudaDriverGetVersion(int *v) { *v = 12060; return OK; }
EXPORT int cudaGetDeviceCount(int *n) { *n = 1; return OK; }
EXPORT int cudaSetDevice(int d) { ENTER; return d ? INVALID : OK; }
EXPORT int cudaDeviceGetAttribute(int *v, int a, int d) { *v = a == 16 ? 8 : a == 75 ? 8 : a == 76 ? 7 : 0; return OK; }
EXPORT int cudaGetDeviceProperties(void *p, int d) { strcpy(p, "Orin"); return OK; }
EXPORT int cudaMemGetInfo(size_t *f, size_t *t) { *f = 4000000000u; *t = 7800000000u; return OK; }
EXPORT int cudaMalloc(void **p, size_t n) { ENTER; *p = malloc(n); live++; return OK; }
EXPORT int cudaFree(void *p) { ENTER; free(p); live--; return OK; }
EXPORT int cudaHostAlloc(void **p, size_t n, unsigned f) { ENTER; *p = malloc(n); live++; return OK; }
EXPORT int cudaFreeHost(void *p) { free(p); live--; return OK; }
EXPORT int cudaHostGetDevicePointer(void **d, void *h, unsigned f) { ENTER; *d = h; return f ? INVALID : OK; }
EXPORT int cudaMemcpyAsync(void *to, void *from, size_t n, int kind, void *s) { ENTER; if (!as(s, 1)) return INVALID; memcpy(to, from, n); copied += n; return OK; }
EXPORT int cudaStreamCreateWithFlags(void **s, unsigned f) { ENTER; return make(s, 1); }
EXPORT int cudaStreamSynchronize(void *s) { ENTER; Handle *h = as(s, 1); return !h ? INVALID : h->capturing ? CAPTURE_INVALID : OK; }
EXPORT int cudaStreamDestroy(void *s) { return drop(s, 1); }
EXPORT int cudaEventCreate(void **e) { ENTER; return make(e, 2); }
EXPORT int cudaEventRecord(void *e, void *s) { ENTER; Handle *h = as(e, 2); if (!h || !as(s, 1)) return INVALID; h->at = now_ms(); return OK; }
EXPORT int cudaEventSynchronize(void *e) { return as(e, 2) ? OK : INVALID; }
EXPORT int cudaEventElapsedTime(float *ms, void *a, void *b) { ENTER; *ms = (float)(as(b, 2)->at - as(a, 2)->at); return OK; }
EXPORT int cudaEventDestroy(void *e) { return drop(e, 2); }
EXPORT int cudaStreamBeginCapture(void *s, int mode) { ENTER; Handle *h = as(s, 1); if (!h || h->capturing) return INVALID; h->capturing = 1; h->nodes = 0; return OK; }
EXPORT int cudaStreamEndCapture(void *s, void **g) {
    Handle *h = as(s, 1);
    if (!h || !h->capturing) return INVALID;
    h->capturing = 0;
    int code = enter();
    if (code) { *g = 0; return code; }
    make(g, 3);
    ((Handle *)*g)->nodes = h->nodes;
    return OK;
}
EXPORT int cudaGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) { ENTER; Handle *h = as(g, 3); if (!h || f) return INVALID; make(e, 4); ((Handle *)*e)->nodes = h->nodes; return OK; }
EXPORT int cudaGraphLaunch(void *e, void *s) { ENTER; Handle *h = as(e, 4); if (!h || !as(s, 1)) return INVALID; launches++; for (int i = 0; i < h->nodes; i++) kernel(); return OK; }
EXPORT int cudaGraphExecDestroy(void *e) { return drop(e, 4); }
EXPORT int cudaGraphDestroy(void *g) { return drop(g, 3); }

/* What an engine's enqueue does: runs the kernel, or adds it to the graph that is being captured. */
EXPORT int double_enqueue(void *s) { Handle *h = as(s, 1); if (!h) return INVALID; if (h->capturing) h->nodes++; else kernel(); return OK; }
