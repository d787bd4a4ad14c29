/*
 * A stand-in for libnvidia-ml.so.1, for tests on machines without an NVIDIA GPU.
 *
 * It is loaded by the real nvidia-ml-py and answers from a text file, which is read again at every call, so that a test
 * changes the machine under a running daemon by replacing that file (write a new one and rename it over the old).
 * FakeGpus in gpu.py writes all of this for a test that wants a machine and not its parts.
 *
 * Environment
 *   GPUD_FAKE_NVML=FILE     the configuration; without it every call but nvmlErrorString gives DRIVER_NOT_LOADED
 *
 * The configuration: "key = value" lines; "#" begins a comment line; "[gpu]" begins the next GPU, "[instance]" the next
 * part of the GPU before it (MIG); at most 16 of both. A size (SIZE) is a whole number of MiB, or of bytes when a B
 * follows it: "1024", "1073741824B".
 *
 *   before the first [gpu]
 *     driver = 580.65.06      what nvmlSystemGetDriverVersion says
 *     call_log = PATH         one line with the function's name is appended for each call (the file is made)
 *     overflow = PATH         a line is appended at each call for memory that finds more held than there is
 *     claims = DIRECTORY      processes "allocate" by a file there, named by their PID, that holds a SIZE for each GPU in
 *                             the order of the configuration: "1024 512". Written anew, it takes effect at once
 *     rule = SIZES FIRST AFTER_MS TEXT
 *                             every process whose command line (its words with a space between) contains TEXT, which goes
 *                             to the end of the line, holds so much for as long as it lives: FIRST from its start on,
 *                             SIZES once it is AFTER_MS old. Both are a SIZE, or several with commas between: the first is
 *                             for the first GPU that its CUDA_VISIBLE_DEVICES shows. A process whose child matches too
 *                             does not count: it is the child's wrapper. The first rule that matches is the one that
 *                             holds. At most 64
 *     linger_ms = 500         memory of an ended process stays used this long after the first call that misses it; -1: for
 *                             ever. Only a process that a call for memory has seen alive leaves something behind
 *     live = no               no process is looked for in /proc: there are only the "process" lines (for timing)
 *     state = PATH            where the lingering is remembered between calls and programs (default: FILE.state)
 *     device = PATH           a file that nvmlInit opens and nvmlShutdown closes, as /dev/nvidia0 is
 *     error.FUNCTION = ERROR  FUNCTION gives ERROR
 *   in a [gpu] or an [instance]
 *     uuid = GPU-…            name = NVIDIA …          pci = 0000:01:00.0
 *     total_mib = SIZE        reserved_mib = SIZE      used_mib = SIZE    (used_mib: held by nobody in particular)
 *     memory = unknown        the memory calls succeed with 2^64-1 in every figure
 *     temperature_c = 40      power_mw = 20000         utilization_percent = 0
 *     process = PID SIZE [compute|graphics|leaving]    a process of somebody else, alive or not; SIZE "-": not available.
 *                                                      May be given several times. "leaving": it ends right before the
 *                                                      first list of processes; calls for memory before that count it
 *     mig = on                the GPU is divided (or may be: with no [instance] after it)
 *     gpu_instance = 1        an [instance]'s number; those with the same one share their memory
 *     xid = SERIAL NUMBER     an Xid happened; each serial is delivered once, to who registered before. Several times
 *     recovery = 1            NVML_FI_DEV_GET_GPU_RECOVERY_ACTION; "-": this driver does not have it
 *     error = ERROR           every call with this GPU's handle gives ERROR
 *     error.FUNCTION = ERROR  FUNCTION with this GPU's handle (or index) gives ERROR
 *
 * FUNCTION is the name that nvidia-ml-py looks up (nvmlInitWithFlags, nvmlDeviceGetMemoryInfo_v2, …). ERROR is the name of
 * a return value without NVML_ERROR_ (NOT_SUPPORTED, GPU_IS_LOST, LIB_RM_VERSION_MISMATCH, UNKNOWN, …) or "hang": the call
 * does not return for as long as the configuration says so.
 *
 * A process also holds memory for as long as it lives when GPUD_FAKE_VRAM_MIB was in its environment when it was executed:
 * a SIZE on the first GPU that its CUDA_VISIBLE_DEVICES (uuids or numbers) shows, or on GPU 0 without that variable;
 * "1024,512" on the first two. A process whose parent declares the very same figure does not count: it inherited it.
 *
 * Only processes that live count, a zombie does not, so that a killed child really gives its memory back.
 */

#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef struct gpu_slot { int index; } *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } nvmlProcessInfo_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { nvmlDevice_t device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } nvmlEventData_t;
typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    int type;
    nvmlReturn_t code;
    union { unsigned number; unsigned long long large; } value;
} nvmlFieldValue_t;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} nvmlPciInfo_t;

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };
enum { NOT_SUPPORTED = 3, TIMEOUT = 10 };
enum { HANG = -1 };
enum { MAX_GPUS = 16, MAX_ERRORS = 64, MAX_FIXED = 64, MAX_HOLDERS = 512, MAX_RULES = 64, MAX_XIDS = 16 };
enum { COMPUTE, GRAPHICS, LEAVING };

static const unsigned long long NOT_AVAILABLE = ~0ULL;
static const unsigned long long MIB = 1ULL << 20;

static const struct { int code; const char *name, *text; } ERRORS[] = {
    {0, "SUCCESS", "Success"},
    {1, "UNINITIALIZED", "Uninitialized"},
    {2, "INVALID_ARGUMENT", "Invalid Argument"},
    {3, "NOT_SUPPORTED", "Not Supported"},
    {4, "NO_PERMISSION", "Insufficient Permissions"},
    {6, "NOT_FOUND", "Not Found"},
    {7, "INSUFFICIENT_SIZE", "Insufficient Size"},
    {9, "DRIVER_NOT_LOADED", "Driver Not Loaded"},
    {10, "TIMEOUT", "Timeout"},
    {12, "LIBRARY_NOT_FOUND", "NVML Shared Library Not Found"},
    {13, "FUNCTION_NOT_FOUND", "Function Not Found"},
    {15, "GPU_IS_LOST", "GPU is lost"},
    {16, "RESET_REQUIRED", "GPU requires reset"},
    {17, "OPERATING_SYSTEM", "The operating system has blocked the request"},
    {18, "LIB_RM_VERSION_MISMATCH", "RM has detected an NVML/RM version mismatch"},
    {20, "MEMORY", "Insufficient Memory"},
    {21, "NO_DATA", "No data"},
    {25, "ARGUMENT_VERSION_MISMATCH", "Argument version mismatch"},
    {27, "NOT_READY", "Not ready"},
    {28, "GPU_NOT_FOUND", "No GPU found"},
    {999, "UNKNOWN", "Unknown Error"},
};

struct planned_error { int gpu; char function[64]; int code; };
struct fixed_process { unsigned pid; long long bytes; int kind; };
struct xid { long long serial; unsigned number; };
struct rule { long long bytes[MAX_GPUS], first_bytes[MAX_GPUS], after_ms; char text[512]; };
struct gpu {
    int parent; /* the slot of the GPU that this is a part of, or -1 */
    char uuid[96], name[96], pci[32];
    long long total_bytes, reserved_bytes, used_bytes;
    int memory_unknown, mig, recovery;
    unsigned gpu_instance;
    struct xid xids[MAX_XIDS];
    int xid_count;
    unsigned temperature_c, power_mw, utilization_percent;
    struct fixed_process fixed[MAX_FIXED];
    int fixed_count;
};
struct config {
    char driver[80], call_log[PATH_MAX], claims[PATH_MAX], state[PATH_MAX + 8], device[PATH_MAX], overflow[PATH_MAX];
    long long linger_ms;
    int dead_only;
    struct rule rules[MAX_RULES];
    int rule_count;
    struct gpu gpus[MAX_GPUS];
    int gpu_count;
    struct planned_error errors[MAX_ERRORS];
    int error_count;
};
struct holder { int gpu; unsigned pid; unsigned long long start; long long bytes; int kind; };
struct holders { struct holder of[MAX_HOLDERS]; int count; };

static struct gpu_slot SLOTS[MAX_GPUS];
static int users;
static int device_fd = -1;

/* The configuration ------------------------------------------------------------------------------------------------ */

static char *trim(char *text)
{
    while (isspace((unsigned char)*text)) text++;
    for (char *end = text + strlen(text); end > text && isspace((unsigned char)end[-1]);) *--end = 0;
    return text;
}

static int error_code(const char *name)
{
    if (strcmp(name, "hang") == 0) return HANG;
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (strcmp(name, ERRORS[i].name) == 0) return ERRORS[i].code;
    fprintf(stderr, "fake nvml: no such error: \"%s\"\n", name);
    abort();
}

static void copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

/* "1024" is MiB, "1024B" bytes. */
static long long size(const char *text)
{
    char *end;
    long long number = strtoll(text, &end, 10);
    return *end == 'B' ? number : number * (long long)MIB;
}

static void sizes(char *list, long long *bytes)
{
    char *item;
    for (int position = 0; position < MAX_GPUS && (item = strsep(&list, ",")) != NULL; position++) bytes[position] = size(item);
}

static int add_rule(struct config *config, const char *value)
{
    char full[256], first[256];
    int text = 0;
    if (config->rule_count == MAX_RULES) abort();
    struct rule *rule = &config->rules[config->rule_count++];
    if (sscanf(value, "%255s %255s %lld %n", full, first, &rule->after_ms, &text) < 3 || !value[text]) return 0;
    sizes(full, rule->bytes);
    sizes(first, rule->first_bytes);
    copy(rule->text, sizeof rule->text, value + text);
    return 1;
}

static void plan_error(struct config *config, int gpu, const char *function, const char *name)
{
    if (config->error_count == MAX_ERRORS) abort();
    struct planned_error *planned = &config->errors[config->error_count++];
    planned->gpu = gpu;
    copy(planned->function, sizeof planned->function, function);
    planned->code = error_code(name);
}

static int set_gpu(struct config *config, struct gpu *gpu, const char *key, const char *value)
{
    int number = config->gpu_count - 1;
    char held[32] = "", kind[16] = "compute";
    if (!strcmp(key, "uuid")) copy(gpu->uuid, sizeof gpu->uuid, value);
    else if (!strcmp(key, "name")) copy(gpu->name, sizeof gpu->name, value);
    else if (!strcmp(key, "pci")) copy(gpu->pci, sizeof gpu->pci, value);
    else if (!strcmp(key, "total_mib")) gpu->total_bytes = size(value);
    else if (!strcmp(key, "reserved_mib")) gpu->reserved_bytes = size(value);
    else if (!strcmp(key, "used_mib")) gpu->used_bytes = size(value);
    else if (!strcmp(key, "mig")) gpu->mig = !strcmp(value, "on");
    else if (!strcmp(key, "gpu_instance")) gpu->gpu_instance = (unsigned)atol(value);
    else if (!strcmp(key, "recovery")) gpu->recovery = strcmp(value, "-") ? atoi(value) : -1;
    else if (!strcmp(key, "xid")) {
        if (gpu->xid_count == MAX_XIDS) abort();
        struct xid *xid = &gpu->xids[gpu->xid_count++];
        if (sscanf(value, "%lld %u", &xid->serial, &xid->number) != 2) return 0;
    }
    else if (!strcmp(key, "memory")) gpu->memory_unknown = !strcmp(value, "unknown");
    else if (!strcmp(key, "temperature_c")) gpu->temperature_c = (unsigned)atol(value);
    else if (!strcmp(key, "power_mw")) gpu->power_mw = (unsigned)atol(value);
    else if (!strcmp(key, "utilization_percent")) gpu->utilization_percent = (unsigned)atol(value);
    else if (!strcmp(key, "error")) plan_error(config, number, "", value);
    else if (!strncmp(key, "error.", 6)) plan_error(config, number, key + 6, value);
    else if (!strcmp(key, "process")) {
        if (gpu->fixed_count == MAX_FIXED) abort();
        struct fixed_process *fixed = &gpu->fixed[gpu->fixed_count++];
        if (sscanf(value, "%u %31s %15s", &fixed->pid, held, kind) < 2) return 0;
        fixed->bytes = strcmp(held, "-") ? size(held) : -1;
        fixed->kind = !strcmp(kind, "graphics") ? GRAPHICS : !strcmp(kind, "leaving") ? LEAVING : COMPUTE;
    } else return 0;
    return 1;
}

static int set_general(struct config *config, const char *key, const char *value)
{
    if (!strcmp(key, "driver")) copy(config->driver, sizeof config->driver, value);
    else if (!strcmp(key, "call_log")) copy(config->call_log, sizeof config->call_log, value);
    else if (!strcmp(key, "claims")) copy(config->claims, sizeof config->claims, value);
    else if (!strcmp(key, "state")) copy(config->state, sizeof config->state, value);
    else if (!strcmp(key, "device")) copy(config->device, sizeof config->device, value);
    else if (!strcmp(key, "overflow")) copy(config->overflow, sizeof config->overflow, value);
    else if (!strcmp(key, "rule")) return add_rule(config, value);
    else if (!strcmp(key, "live")) config->dead_only = !strcmp(value, "no");
    else if (!strcmp(key, "linger_ms")) config->linger_ms = atoll(value);
    else if (!strncmp(key, "error.", 6)) plan_error(config, -1, key + 6, value);
    else return 0;
    return 1;
}

static int read_config(struct config *config)
{
    const char *path = getenv("GPUD_FAKE_NVML");
    FILE *file = path ? fopen(path, "re") : NULL;
    char line[PATH_MAX + 128];
    memset(config, 0, sizeof *config);
    if (!file) return 0;
    copy(config->driver, sizeof config->driver, "580.65.06");
    snprintf(config->state, sizeof config->state, "%s.state", path);
    while (fgets(line, sizeof line, file)) {
        char *key = trim(line), *equals;
        if (!*key || *key == '#') continue;
        if (!strcmp(key, "[gpu]") || !strcmp(key, "[instance]")) {
            if (config->gpu_count == MAX_GPUS) abort();
            struct gpu *gpu = &config->gpus[config->gpu_count++];
            gpu->parent = -1;
            if (key[1] == 'i') {
                gpu->parent = config->gpu_count - 2;
                while (gpu->parent >= 0 && config->gpus[gpu->parent].parent >= 0) gpu->parent--;
                if (gpu->parent < 0) abort();
            }
            snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-fake-%d", config->gpu_count - 1);
            snprintf(gpu->pci, sizeof gpu->pci, "0000:%02x:00.0", config->gpu_count);
            copy(gpu->name, sizeof gpu->name, "NVIDIA Fake GPU");
            gpu->temperature_c = 40;
            gpu->power_mw = 20000;
            continue;
        }
        equals = strchr(key, '=');
        if (equals) *equals = 0;
        int known = equals && (config->gpu_count
                                   ? set_gpu(config, &config->gpus[config->gpu_count - 1], trim(key), trim(equals + 1))
                                   : set_general(config, trim(key), trim(equals + 1)));
        if (!known) {
            fprintf(stderr, "fake nvml: %s: cannot use the line \"%s\"\n", path, key);
            abort();
        }
    }
    fclose(file);
    return 1;
}

/* Who holds memory ------------------------------------------------------------------------------------------------- */

/* True while the process lives and is not a zombie. */
static int process_lives(unsigned pid, unsigned long long *start, unsigned *parent)
{
    char path[64], text[1024], state = 0;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    char *rest = strrchr(text, ')');
    if (!rest || sscanf(rest + 1, " %c %u %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state,
                        parent, start) != 3)
        return 0;
    return state != 'Z' && state != 'X';
}

/* A file of a process, with the bytes 0 in it; its length. The text is good until the next call. */
static size_t process_file(unsigned pid, const char *name, char **content)
{
    static _Thread_local char text[1 << 17];
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/%s", pid, name);
    FILE *file = fopen(path, "re");
    size_t length = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file) fclose(file);
    text[length] = 0;
    *content = text;
    return length;
}

/* The value of one variable in the environment that the process was executed with, or an empty string and 0. */
static int process_variable(unsigned pid, const char *name, char *value, size_t size)
{
    char *text;
    size_t length = process_file(pid, "environ", &text), wanted = strlen(name);
    *value = 0;
    for (char *at = text; at < text + length; at += strlen(at) + 1)
        if (!strncmp(at, name, wanted) && at[wanted] == '=') {
            copy(value, size, at + wanted + 1);
            return 1;
        }
    return 0;
}

/* The number of the first rule that the command line fits, or -1. */
static int rule_for(const struct config *config, unsigned pid)
{
    char *text;
    size_t length = config->rule_count ? process_file(pid, "cmdline", &text) : 0;
    for (size_t i = 0; i + 1 < length; i++)
        if (!text[i]) text[i] = ' ';
    for (int i = 0; length && i < config->rule_count; i++)
        if (strstr(text, config->rules[i].text)) return i;
    return -1;
}

/* What one process holds in several ways is one entry, as long as all of it is known. */
static void hold(struct holders *holders, int gpu, unsigned pid, unsigned long long start, long long bytes, int kind)
{
    if (bytes == 0 && kind == COMPUTE) return;
    for (int i = 0; i < holders->count; i++) {
        struct holder *one = &holders->of[i];
        if (one->gpu == gpu && one->pid == pid && one->kind == kind && one->bytes >= 0 && bytes >= 0) {
            one->bytes += bytes;
            return;
        }
    }
    if (holders->count == MAX_HOLDERS) return;
    holders->of[holders->count++] = (struct holder){gpu, pid, start, bytes, kind};
}

/* The GPU that a process sees at a position, or -1. */
static int visible_gpu(const struct config *config, const char *visible, int position)
{
    char list[1024], *rest = list, *item;
    copy(list, sizeof list, visible);
    while ((item = strsep(&rest, ",")) != NULL) {
        int found = -1;
        item = trim(item);
        for (int i = 0; i < config->gpu_count; i++)
            if (!strcmp(item, config->gpus[i].uuid)) found = i;
        if (found < 0 && isdigit((unsigned char)*item)) found = atoi(item);
        if (found < 0 || found >= config->gpu_count) return -1;
        if (position-- == 0) return found;
    }
    return -1;
}

static void declared(const struct config *config, unsigned pid, struct holders *holders)
{
    char figures[256], inherited[256], visible[1024], *rest = figures, *item;
    unsigned long long start, parent_start;
    unsigned parent = 0, grandparent = 0;
    if (!process_variable(pid, "GPUD_FAKE_VRAM_MIB", figures, sizeof figures)) return;
    if (!process_lives(pid, &start, &parent)) return;
    if (process_lives(parent, &parent_start, &grandparent)
        && process_variable(parent, "GPUD_FAKE_VRAM_MIB", inherited, sizeof inherited) && !strcmp(inherited, figures))
        return;
    int restricted = process_variable(pid, "CUDA_VISIBLE_DEVICES", visible, sizeof visible);
    for (int position = 0; (item = strsep(&rest, ",")) != NULL; position++) {
        int gpu = restricted ? visible_gpu(config, visible, position) : position;
        if (gpu >= 0 && gpu < config->gpu_count) hold(holders, gpu, pid, start, size(item), COMPUTE);
    }
}

static void claimed(const struct config *config, unsigned pid, const char *path, struct holders *holders)
{
    unsigned long long start;
    unsigned parent;
    char item[32];
    FILE *file = fopen(path, "re");
    if (!file) return;
    if (process_lives(pid, &start, &parent))
        for (int gpu = 0; gpu < config->gpu_count && fscanf(file, "%31s", item) == 1; gpu++)
            hold(holders, gpu, pid, start, size(item), COMPUTE);
    fclose(file);
}

static long long now_ms(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

struct match { unsigned pid, parent; unsigned long long start; int rule; };

static void hold_by_rule(const struct config *config, const struct match *match, struct holders *holders)
{
    const struct rule *rule = &config->rules[match->rule];
    char visible[1024];
    long long age_ms = now_ms(CLOCK_BOOTTIME) - (long long)match->start * 1000 / sysconf(_SC_CLK_TCK);
    const long long *bytes = age_ms >= rule->after_ms ? rule->bytes : rule->first_bytes;
    int restricted = process_variable(match->pid, "CUDA_VISIBLE_DEVICES", visible, sizeof visible);
    for (int position = 0; position < MAX_GPUS; position++) {
        int gpu = !bytes[position] ? -1 : restricted ? visible_gpu(config, visible, position) : position;
        if (gpu >= 0 && gpu < config->gpu_count) hold(holders, gpu, match->pid, match->start, bytes[position], COMPUTE);
    }
}

static void find_live(const struct config *config, struct holders *holders)
{
    static _Thread_local struct match matches[MAX_HOLDERS];
    char path[PATH_MAX + 300];
    struct dirent *entry;
    int count = 0;
    DIR *directory = config->dead_only ? NULL : opendir("/proc");
    while (directory && (entry = readdir(directory)) != NULL) {
        if (!isdigit((unsigned char)*entry->d_name)) continue;
        struct match match = {(unsigned)atoi(entry->d_name), 0, 0, 0};
        declared(config, match.pid, holders);
        match.rule = rule_for(config, match.pid);
        if (match.rule >= 0 && count < MAX_HOLDERS && process_lives(match.pid, &match.start, &match.parent))
            matches[count++] = match;
    }
    if (directory) closedir(directory);
    for (int i = 0; i < count; i++) {
        int wraps = 0;
        for (int j = 0; j < count; j++) wraps |= matches[j].parent == matches[i].pid && matches[j].rule == matches[i].rule;
        if (!wraps) hold_by_rule(config, &matches[i], holders);
    }
    directory = *config->claims ? opendir(config->claims) : NULL;
    while (directory && (entry = readdir(directory)) != NULL)
        if (isdigit((unsigned char)*entry->d_name)) {
            snprintf(path, sizeof path, "%s/%s", config->claims, entry->d_name);
            claimed(config, (unsigned)atoi(entry->d_name), path, holders);
        }
    if (directory) closedir(directory);
}

/* What ended processes still hold, by GPU; the state file remembers who was seen alive and since when each is missed. */
static void add_lingering(const struct config *config, const struct holders *live, long long *used_bytes)
{
    struct remembered { struct holder holder; long long missed; } past[MAX_HOLDERS];
    int count = 0;
    int fd = open(config->state, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return;
    flock(fd, LOCK_EX);
    FILE *file = fdopen(fd, "r+e");
    struct remembered one = {0};
    while (count < MAX_HOLDERS && fscanf(file, "%d %u %llu %lld %lld", &one.holder.gpu, &one.holder.pid, &one.holder.start,
                                         &one.holder.bytes, &one.missed) == 5)
        past[count++] = one;
    rewind(file);
    if (ftruncate(fd, 0) != 0) abort();
    for (int i = 0; i < live->count; i++)
        fprintf(file, "%d %u %llu %lld 0\n", live->of[i].gpu, live->of[i].pid, live->of[i].start, live->of[i].bytes);
    for (int i = 0; i < count; i++) {
        int alive = 0;
        for (int j = 0; j < live->count; j++)
            alive |= live->of[j].pid == past[i].holder.pid && live->of[j].start == past[i].holder.start;
        if (alive || past[i].holder.gpu >= config->gpu_count) continue;
        if (!past[i].missed) past[i].missed = now_ms(CLOCK_MONOTONIC);
        if (config->linger_ms >= 0 && now_ms(CLOCK_MONOTONIC) - past[i].missed >= config->linger_ms) continue;
        used_bytes[past[i].holder.gpu] += past[i].holder.bytes;
        fprintf(file, "%d %u %llu %lld %lld\n", past[i].holder.gpu, past[i].holder.pid, past[i].holder.start,
                past[i].holder.bytes, past[i].missed);
    }
    fclose(file);
}

static void append(const char *path, const char *line)
{
    int fd = *path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (fd < 0) return;
    if (write(fd, line, strlen(line)) != (ssize_t)strlen(line)) abort();
    close(fd);
}

/* The last one that left as processes were listed: a test has one at a time. */
static unsigned left_pid;

static int has_left(const struct fixed_process *fixed)
{
    return fixed->kind == LEAVING && fixed->pid == left_pid;
}

static void memory_of(const struct config *config, int number, nvmlMemory_v2_t *memory)
{
    static _Thread_local struct holders live;
    const struct gpu *gpu = &config->gpus[number];
    long long used_bytes[MAX_GPUS] = {0}, used;
    live.count = 0;
    if (gpu->memory_unknown) {
        memory->total = memory->reserved = memory->free = memory->used = NOT_AVAILABLE;
        return;
    }
    find_live(config, &live);
    for (int i = 0; i < live.count; i++) used_bytes[live.of[i].gpu] += live.of[i].bytes;
    if (config->linger_ms) add_lingering(config, &live, used_bytes);
    used = used_bytes[number] + gpu->used_bytes;
    for (int i = 0; i < gpu->fixed_count; i++)
        if (gpu->fixed[i].bytes > 0 && !has_left(&gpu->fixed[i])) used += gpu->fixed[i].bytes;
    if (used > gpu->total_bytes - gpu->reserved_bytes) {
        char line[256];
        snprintf(line, sizeof line, "%s: %lld bytes are held, and there are %lld\n", gpu->uuid, used,
                 gpu->total_bytes - gpu->reserved_bytes);
        append(config->overflow, line);
        used = gpu->total_bytes - gpu->reserved_bytes;
    }
    memory->total = (unsigned long long)gpu->total_bytes;
    memory->reserved = (unsigned long long)gpu->reserved_bytes;
    memory->used = (unsigned long long)used;
    memory->free = memory->total - memory->reserved - memory->used;
}

/* Every call begins here ------------------------------------------------------------------------------------------- */

static void log_call(const struct config *config, const char *function)
{
    char line[80];
    snprintf(line, sizeof line, "%s\n", function);
    append(config->call_log, line);
}

static int planned_for(const struct config *config, int gpu, const char *function)
{
    for (int i = 0; i < config->error_count; i++) {
        const struct planned_error *planned = &config->errors[i];
        if ((planned->gpu < 0 || planned->gpu == gpu) && (!*planned->function || !strcmp(planned->function, function)))
            return planned->code;
    }
    return SUCCESS;
}

/* Reads the configuration, logs the call, and gives the planned error; a planned hang lasts until it is lifted. */
static nvmlReturn_t begin(struct config *config, const char *function, int gpu)
{
    int planned;
    if (!read_config(config)) return DRIVER_NOT_LOADED;
    log_call(config, function);
    while ((planned = planned_for(config, gpu, function)) == HANG) {
        usleep(10000);
        if (!read_config(config)) return DRIVER_NOT_LOADED;
    }
    return planned;
}

static nvmlReturn_t begin_used(struct config *config, const char *function, int gpu)
{
    nvmlReturn_t planned = begin(config, function, gpu);
    if (planned == SUCCESS && users == 0) return UNINITIALIZED;
    return planned;
}

static nvmlReturn_t begin_gpu(struct config *config, const char *function, nvmlDevice_t handle)
{
    if (handle < SLOTS || handle >= SLOTS + MAX_GPUS) return INVALID_ARGUMENT;
    nvmlReturn_t planned = begin_used(config, function, (int)(handle - SLOTS));
    if (planned == SUCCESS && handle - SLOTS >= config->gpu_count) return INVALID_ARGUMENT;
    return planned;
}

/* The slot of the nth undivided GPU (parent -1), or of the nth part of one; -1 where there is none. */
static int slot_of(const struct config *config, int parent, unsigned number)
{
    for (int i = 0; i < config->gpu_count; i++)
        if (config->gpus[i].parent == parent && number-- == 0) return i;
    return -1;
}

static _Thread_local struct config config; /* as this call found it */

#define GPU config.gpus[handle - SLOTS]
#define BEGIN(code) do { nvmlReturn_t planned = (code); if (planned != SUCCESS) return planned; } while (0)

static nvmlReturn_t put_text(char *to, unsigned size, const char *from)
{
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

/* The library ------------------------------------------------------------------------------------------------------ */

static nvmlReturn_t initialise(const char *function)
{
    BEGIN(begin(&config, function, -1));
    if (users++ == 0 && *config.device) device_fd = open(config.device, O_RDONLY | O_CLOEXEC);
    return SUCCESS;
}

nvmlReturn_t nvmlInit(void) { return initialise(__func__); }
nvmlReturn_t nvmlInit_v2(void) { return initialise(__func__); }
nvmlReturn_t nvmlInitWithFlags(unsigned flags) { (void)flags; return initialise(__func__); }

nvmlReturn_t nvmlShutdown(void)
{
    BEGIN(begin_used(&config, __func__, -1));
    if (--users == 0 && device_fd >= 0) {
        close(device_fd);
        device_fd = -1;
    }
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code) return ERRORS[i].text;
    return "Unknown Error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    BEGIN(begin_used(&config, __func__, -1));
    return put_text(text, size, config.driver);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *text, unsigned size)
{
    BEGIN(begin(&config, __func__, -1));
    return put_text(text, size, config.driver);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    BEGIN(begin_used(&config, __func__, -1));
    for (*count = 0; slot_of(&config, -1, *count) >= 0;) ++*count;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *handle)
{
    if (!read_config(&config)) return DRIVER_NOT_LOADED;
    int slot = slot_of(&config, -1, index);
    BEGIN(begin_used(&config, __func__, slot < 0 ? MAX_GPUS : slot));
    if (slot < 0 || slot >= config.gpu_count) return INVALID_ARGUMENT;
    *handle = &SLOTS[slot];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *handle)
{
    BEGIN(begin_used(&config, __func__, -1));
    for (int i = 0; i < config.gpu_count; i++)
        if (!strcmp(config.gpus[i].uuid, uuid)) {
            *handle = &SLOTS[i];
            return planned_for(&config, i, __func__);
        }
    return NOT_FOUND;
}

static void pci_parts(const char *text, unsigned *domain, unsigned *bus, unsigned *device)
{
    *domain = *bus = *device = 0;
    if (sscanf(text, "%x:%x:%x", domain, bus, device) != 3) abort();
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *address, nvmlDevice_t *handle)
{
    unsigned wanted[3], own[3];
    BEGIN(begin_used(&config, __func__, -1));
    pci_parts(address, &wanted[0], &wanted[1], &wanted[2]);
    for (int i = 0; i < config.gpu_count; i++) {
        pci_parts(config.gpus[i].pci, &own[0], &own[1], &own[2]);
        if (!memcmp(wanted, own, sizeof own)) {
            *handle = &SLOTS[i];
            return planned_for(&config, i, __func__);
        }
    }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t handle, char *text, unsigned size)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    return put_text(text, size, GPU.name);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t handle, char *text, unsigned size)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    return put_text(text, size, GPU.uuid);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t handle, unsigned *index)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    for (*index = 0; slot_of(&config, GPU.parent, *index) != handle - SLOTS;) ++*index;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, nvmlPciInfo_t *info)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    memset(info, 0, sizeof *info);
    pci_parts(GPU.pci, &info->domain, &info->bus, &info->device);
    info->pci_device_id = 0x268410de;
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", info->domain, info->bus, info->device);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0", info->domain & 0xffff, info->bus & 0xff,
             info->device & 0xff);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t *memory)
{
    nvmlMemory_v2_t figures;
    BEGIN(begin_gpu(&config, __func__, handle));
    memory_of(&config, (int)(handle - SLOTS), &figures);
    *memory = (nvmlMemory_t){figures.total, figures.free, figures.used + figures.reserved};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, nvmlMemory_v2_t *memory)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    if (memory->version != (sizeof *memory | 2u << 24)) return 25;
    memory_of(&config, (int)(handle - SLOTS), memory);
    return SUCCESS;
}

static nvmlReturn_t list_processes(const char *function, nvmlDevice_t handle, int kind, unsigned *count,
                                   nvmlProcessInfo_t *infos)
{
    static _Thread_local struct holders holders;
    unsigned found = 0, room = infos ? *count : 0;
    BEGIN(begin_gpu(&config, function, handle));
    holders.count = 0;
    for (int i = 0; i < GPU.fixed_count; i++) {
        if (GPU.fixed[i].kind == LEAVING) left_pid = GPU.fixed[i].pid;
        else hold(&holders, (int)(handle - SLOTS), GPU.fixed[i].pid, 0, GPU.fixed[i].bytes, GPU.fixed[i].kind);
    }
    find_live(&config, &holders);
    for (int i = 0; i < holders.count; i++) {
        const struct holder *one = &holders.of[i];
        if (one->gpu != handle - SLOTS || one->kind != kind) continue;
        if (found < room)
            infos[found] = (nvmlProcessInfo_t){one->pid, one->bytes < 0 ? NOT_AVAILABLE : (unsigned long long)one->bytes,
                                               ~0u, ~0u};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos)
{
    return list_processes(__func__, handle, COMPUTE, count, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos)
{
    return list_processes(__func__, handle, COMPUTE, count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos)
{
    return list_processes(__func__, handle, GRAPHICS, count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos)
{
    return list_processes(__func__, handle, GRAPHICS, count, infos);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t handle, int sensor, unsigned *celsius)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    if (sensor != 0) return INVALID_ARGUMENT;
    if (GPU.parent >= 0) return NOT_SUPPORTED;
    *celsius = GPU.temperature_c;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, nvmlUtilization_t *rates)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    if (GPU.parent >= 0) return NOT_SUPPORTED;
    *rates = (nvmlUtilization_t){GPU.utilization_percent, 0};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t handle, unsigned *milliwatts)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    if (GPU.parent >= 0) return NOT_SUPPORTED;
    *milliwatts = GPU.power_mw;
    return SUCCESS;
}

/* A divided GPU ---------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t handle, unsigned *current, unsigned *pending)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    if (!GPU.mig && GPU.parent < 0 && slot_of(&config, (int)(handle - SLOTS), 0) < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)GPU.mig;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t handle, unsigned *count)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    *count = GPU.mig ? 7 : 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t handle, unsigned index, nvmlDevice_t *part)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    int slot = slot_of(&config, (int)(handle - SLOTS), index);
    if (slot < 0) return NOT_FOUND;
    *part = &SLOTS[slot];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t handle, unsigned *id)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    if (GPU.parent < 0) return NOT_SUPPORTED;
    *id = GPU.gpu_instance;
    return SUCCESS;
}

/* Trouble that the driver tells of ---------------------------------------------------------------------------------- */

static struct { int open; unsigned watched; long long delivered[MAX_GPUS]; } events;

nvmlReturn_t nvmlEventSetCreate(void **set)
{
    BEGIN(begin_used(&config, __func__, -1));
    memset(&events, 0, sizeof events);
    events.open = 1;
    *set = &events;
    return SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(void *set)
{
    BEGIN(begin_used(&config, __func__, -1));
    if (set != &events || !events.open) return INVALID_ARGUMENT;
    events.open = 0;
    return SUCCESS;
}

/* What happened before somebody registered is told to nobody. */
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t handle, unsigned long long types, void *set)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    if (set != &events || !events.open || !(types & 8)) return INVALID_ARGUMENT;
    events.watched |= 1u << (handle - SLOTS);
    for (int i = 0; i < GPU.xid_count; i++)
        if (GPU.xids[i].serial > events.delivered[handle - SLOTS]) events.delivered[handle - SLOTS] = GPU.xids[i].serial;
    return SUCCESS;
}

/* Never waits: what is there is told. */
nvmlReturn_t nvmlEventSetWait_v2(void *set, nvmlEventData_t *event, unsigned timeout_ms)
{
    (void)timeout_ms;
    BEGIN(begin_used(&config, __func__, -1));
    if (set != &events || !events.open) return INVALID_ARGUMENT;
    for (int gpu = 0; gpu < config.gpu_count; gpu++)
        for (int i = 0; (events.watched >> gpu & 1) && i < config.gpus[gpu].xid_count; i++) {
            const struct xid *xid = &config.gpus[gpu].xids[i];
            if (xid->serial <= events.delivered[gpu]) continue;
            events.delivered[gpu] = xid->serial;
            *event = (nvmlEventData_t){&SLOTS[gpu], 8, xid->number, ~0u, ~0u};
            return SUCCESS;
        }
    return TIMEOUT;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, nvmlFieldValue_t *values)
{
    BEGIN(begin_gpu(&config, __func__, handle));
    for (int i = 0; i < count; i++) {
        int known = values[i].id == 230 && GPU.recovery >= 0;
        values[i].code = known ? SUCCESS : NOT_SUPPORTED;
        values[i].type = 1;
        values[i].value.large = known ? (unsigned long long)GPU.recovery : 0;
    }
    return SUCCESS;
}
