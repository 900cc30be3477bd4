/* A stand-in for NVIDIA's driver library, told by environment variables what to answer; read anew at every call.
 *
 * FAKE_NVML_GPUS       memory of each GPU in MiB: "24564,24564"; empty: no GPU
 * FAKE_NVML_PROCESSES  "GPU:PID:MIB,..."
 * FAKE_NVML_ERRORS     "function@GPU=code,..."; @GPU may be left out; * is every function about a GPU
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_GPUS = 16, RESERVED_MIB = 512 };
typedef unsigned long long u64;
typedef struct { int index; } Device;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version; int sensor; int temperature; } Temperature;

static Device devices[MAX_GPUS];
static int num_open = 0;

static const char *env(const char *name) { const char *value = getenv(name); return value ? value : ""; }

/* The code that FAKE_NVML_ERRORS has for a function asked about a GPU (-1: about none). */
static int injected(const char *function, int gpu) {
    char text[4096], *rest = text, *entry;
    snprintf(text, sizeof text, "%s", env("FAKE_NVML_ERRORS"));
    while ((entry = strsep(&rest, ","))) {
        char *code = strchr(entry, '=');
        if (!code) continue;
        *code++ = 0;
        char *at = strchr(entry, '@');
        if (at) *at++ = 0;
        if (strcmp(entry, function) && !(gpu >= 0 && !strcmp(entry, "*"))) continue;
        if (!at || atoi(at) == gpu) return atoi(code);
    }
    return SUCCESS;
}

static int num_gpus(void) {
    const char *text = env("FAKE_NVML_GPUS");
    int count = *text ? 1 : 0;
    for (; *text; text++) count += *text == ',';
    return count;
}

static u64 mib_of(int gpu) {
    const char *text = env("FAKE_NVML_GPUS");
    while (gpu--) text = strchr(text, ',') + 1;
    return strtoull(text, NULL, 10);
}

/* Fill in at most `room` processes of a GPU; the number there are, their memory in *mib. */
static unsigned processes_of(int gpu, Process *out, unsigned room, u64 *mib) {
    char text[4096], *rest = text, *entry;
    unsigned count = 0;
    *mib = 0;
    snprintf(text, sizeof text, "%s", env("FAKE_NVML_PROCESSES"));
    while ((entry = strsep(&rest, ","))) {
        int on; unsigned pid; u64 size;
        if (sscanf(entry, "%d:%u:%llu", &on, &pid, &size) != 3 || on != gpu) continue;
        if (count < room) out[count] = (Process){pid, size << 20, ~0u, ~0u};
        *mib += size;
        count++;
    }
    return count;
}

#define ASKED(device) \
    do { \
        if (!num_open) return UNINITIALIZED; \
        int code = injected(__func__, (device)->index); \
        if (code) return code; \
    } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = injected(__func__, -1);
    if (code) return code;
    for (int i = 0; i < MAX_GPUS; i++) devices[i].index = i;
    num_open++;
    return SUCCESS;
}
int nvmlShutdown(void) { return num_open ? (num_open--, SUCCESS) : UNINITIALIZED; }
const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, sizeof text, "fake error %d", code); return text; }
int nvmlSystemGetDriverVersion(char *out, unsigned room) {
    int code = injected(__func__, -1);
    if (code) return code;
    snprintf(out, room, "999.11");
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *out) {
    int code = num_open ? injected(__func__, -1) : UNINITIALIZED;
    if (!code) *out = num_gpus();
    return code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    if (!num_open) return UNINITIALIZED;
    if ((int)index >= num_gpus()) return INVALID_ARGUMENT;
    int code = injected(__func__, index);
    if (!code) *out = &devices[index];
    return code;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Device **out) {
    int index;
    if (sscanf(uuid, "MIG-%d", &index) != 1 || index >= num_gpus()) return NOT_FOUND;
    *out = &devices[index];
    return SUCCESS;
}
int nvmlDeviceGetName(Device *device, char *out, unsigned room) {
    ASKED(device);
    snprintf(out, room, "Fake GPU %d", device->index);
    return SUCCESS;
}
int nvmlDeviceGetUUID(Device *device, char *out, unsigned room) {
    ASKED(device);
    snprintf(out, room, "GPU-%08d-fake", device->index + 1000);
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    ASKED(device);
    *major = 8; *minor = 9;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(Device *device, Memory *out) {
    ASKED(device);
    u64 mib;
    processes_of(device->index, NULL, 0, &mib);
    out->total = mib_of(device->index) << 20;
    out->used = (mib + RESERVED_MIB) << 20; /* the old question counts the driver's own share as used */
    out->free = out->total - out->used;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *out) {
    ASKED(device);
    u64 mib;
    processes_of(device->index, NULL, 0, &mib);
    out->total = mib_of(device->index) << 20;
    out->reserved = (u64)RESERVED_MIB << 20;
    out->used = mib << 20;
    out->free = out->total - out->reserved - out->used;
    return SUCCESS;
}
static int running(Device *device, unsigned *count, Process *out) {
    u64 mib;
    unsigned room = out ? *count : 0;
    unsigned there = processes_of(device->index, out, room, &mib);
    if (getenv("FAKE_NVML_HIDES_PROCESSES")) there = 0;
    *count = there;
    return there > room ? INSUFFICIENT_SIZE : SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *out) { ASKED(device); return running(device, count, out); }
int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *count, Process *out) { ASKED(device); return running(device, count, out); }
int nvmlDeviceGetUtilizationRates(Device *device, Utilization *out) {
    ASKED(device);
    out->gpu = 40 + device->index; out->memory = 10;
    return SUCCESS;
}
int nvmlDeviceGetTemperatureV(Device *device, Temperature *out) {
    ASKED(device);
    out->temperature = 60 + device->index;
    return SUCCESS;
}
int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *out) {
    ASKED(device);
    (void)sensor;
    *out = 50 + device->index;
    return SUCCESS;
}
