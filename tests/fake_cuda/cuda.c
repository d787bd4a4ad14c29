/* A stand-in for libcuda.so.1: as much of it as gpud.gpus.probe calls. The file that $GPUD_FAKE_CUDA names says which
   function fails and with which code ("cuInit 999"), or that it never comes back ("cuInit hang"). An empty one: all is
   well. It is read at each call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int result(const char *function)
{
    char name[64] = "", what[16] = "";
    const char *path = getenv("GPUD_FAKE_CUDA");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "%63s %15s", name, what) != 2)
            name[0] = 0;
        fclose(file);
    }
    if (strcmp(name, function))
        return 0;
    while (!strcmp(what, "hang"))
        pause();
    return atoi(what);
}

int cuInit(unsigned flags) { (void)flags; return result(__func__); }
int cuDeviceGetCount(int *count) { *count = 1; return result(__func__); }
int cuDeviceGet(int *device, int index) { *device = index; return result(__func__); }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &result; return result(__func__); }
int cuCtxSetCurrent(void *context) { (void)context; return result(__func__); }
int cuMemAlloc_v2(unsigned long long *at, size_t bytes) { *at = bytes; return result(__func__); }
int cuMemFree_v2(unsigned long long at) { (void)at; return result(__func__); }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return result(__func__); }

int cuGetErrorName(int code, const char **name)
{
    *name = code == 999 ? "CUDA_ERROR_UNKNOWN" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : NULL;
    return *name ? 0 : 1;
}
