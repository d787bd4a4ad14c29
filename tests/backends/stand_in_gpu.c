// GPUs that a real llama.cpp plans for and never computes on: an out-of-tree backend, loaded with GGML_BACKEND_PATH.
//
// There are STAND_IN_GPUS of them, with STAND_IN_FREE_MIB each. They are what a plan depends on: devices of type GPU,
// called CUDA0 and so on, with the alignment and the padding of rows that NVIDIA's have, memory that is not the host's,
// pinned host memory, and the wish to compute large products themselves wherever the weights are.
//
// The layout below is version 2 of ggml's interface for backends, which has no public header; llama.cpp refuses a
// backend of another version.

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml.h"

enum { API_VERSION = 2, MOST = 8, ALIGNMENT = 128, HOST_ALIGNMENT = 32, ROW_PADDING = 512, WORTH_COPYING = 32 };

struct ggml_backend_buffer_type {
    const char *(*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const struct ggml_tensor *);
    bool (*is_host)(ggml_backend_buffer_type_t);
    ggml_backend_dev_t device;
    void *context;
};

struct buffer_interface {
    void (*free_buffer)(ggml_backend_buffer_t);
    void *(*get_base)(ggml_backend_buffer_t);
    enum ggml_status (*init_tensor)(ggml_backend_buffer_t, struct ggml_tensor *);
    void (*memset_tensor)(ggml_backend_buffer_t, struct ggml_tensor *, uint8_t, size_t, size_t);
    void (*set_tensor)(ggml_backend_buffer_t, struct ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor)(ggml_backend_buffer_t, const struct ggml_tensor *, void *, size_t, size_t);
    void *set_tensor_2d, *get_tensor_2d;
    bool (*cpy_tensor)(ggml_backend_buffer_t, const struct ggml_tensor *, struct ggml_tensor *);
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    void (*reset)(ggml_backend_buffer_t);
};

struct ggml_backend_buffer {
    struct buffer_interface interface;
    ggml_backend_buffer_type_t type;
    void *context;
    size_t size;
    int usage;
};

ggml_backend_buffer_t ggml_backend_buffer_init(
    ggml_backend_buffer_type_t, struct buffer_interface, void *context, size_t size);

struct ggml_backend {
    ggml_guid_t guid;
    const char *(*get_name)(ggml_backend_t);
    void (*free)(ggml_backend_t);
    void *set_tensor_async, *get_tensor_async, *set_tensor_2d_async, *get_tensor_2d_async, *cpy_tensor_async;
    void (*synchronize)(ggml_backend_t);
    void *graph_plan_create, *graph_plan_free, *graph_plan_update, *graph_plan_compute;
    enum ggml_status (*graph_compute)(ggml_backend_t, struct ggml_cgraph *);
    void (*event_record)(ggml_backend_t, ggml_backend_event_t);
    void (*event_wait)(ggml_backend_t, ggml_backend_event_t);
    void *graph_optimize;
    ggml_backend_dev_t device;
    void *context;
};

struct ggml_backend_event {
    ggml_backend_dev_t device;
    void *context;
};

struct ggml_backend_device {
    const char *(*get_name)(ggml_backend_dev_t);
    const char *(*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t *, size_t *);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, struct ggml_backend_dev_props *);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char *);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_t (*buffer_from_host_ptr)(ggml_backend_dev_t, void *, size_t, size_t);
    bool (*supports_op)(ggml_backend_dev_t, const struct ggml_tensor *);
    bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
    bool (*offload_op)(ggml_backend_dev_t, const struct ggml_tensor *);
    ggml_backend_event_t (*event_new)(ggml_backend_dev_t);
    void (*event_free)(ggml_backend_dev_t, ggml_backend_event_t);
    void (*event_synchronize)(ggml_backend_dev_t, ggml_backend_event_t);
    ggml_backend_reg_t reg;
    void *context;
};

struct ggml_backend_reg {
    int api_version;
    const char *(*get_name)(ggml_backend_reg_t);
    size_t (*get_device_count)(ggml_backend_reg_t);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
    void *(*get_proc_address)(ggml_backend_reg_t, const char *);
    void *context;
};

static struct ggml_backend_buffer_type memories[MOST], pinned;
static struct ggml_backend_device devices[MOST];
static struct ggml_backend_reg registry;
static char names[MOST][8];
static size_t count;

static size_t setting(const char *name, size_t otherwise) {
    const char *value = getenv(name);
    return value ? strtoull(value, NULL, 10) : otherwise;
}

// Buffers. Only what a dry run still allocates ever exists: states of recurrent layers, never touched.

static void free_buffer(ggml_backend_buffer_t buffer) { free(buffer->context); }
static void *get_base(ggml_backend_buffer_t buffer) { return buffer->context; }
static void set_tensor(ggml_backend_buffer_t b, struct ggml_tensor *t, const void *d, size_t o, size_t s) {}
static void get_tensor(ggml_backend_buffer_t b, const struct ggml_tensor *t, void *d, size_t o, size_t s) {}
static void memset_tensor(ggml_backend_buffer_t b, struct ggml_tensor *t, uint8_t v, size_t o, size_t s) {}
static void clear(ggml_backend_buffer_t buffer, uint8_t value) {}

static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    void *memory = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    struct buffer_interface interface = {
        .free_buffer = free_buffer,
        .get_base = get_base,
        .memset_tensor = memset_tensor,
        .set_tensor = set_tensor,
        .get_tensor = get_tensor,
        .clear = clear,
    };
    return memory ? ggml_backend_buffer_init(type, interface, memory, size) : NULL;
}

static const char *memory_name(ggml_backend_buffer_type_t type) { return type->context; }
static size_t alignment(ggml_backend_buffer_type_t type) { return ALIGNMENT; }
static size_t host_alignment(ggml_backend_buffer_type_t type) { return HOST_ALIGNMENT; }
static bool yes(ggml_backend_buffer_type_t type) { return true; }

static size_t alloc_size(ggml_backend_buffer_type_t type, const struct ggml_tensor *tensor) {
    size_t size = ggml_nbytes(tensor);
    int64_t rest = tensor->ne[0] % ROW_PADDING;
    if (ggml_is_quantized(tensor->type) && rest)
        size += ggml_row_size(tensor->type, ROW_PADDING - rest);
    return size;
}

// Backends: there is nothing to wait for, and nothing is ever computed.

static const char *backend_name(ggml_backend_t backend) { return backend->device->get_name(backend->device); }
static void free_backend(ggml_backend_t backend) { free(backend); }
static void synchronize(ggml_backend_t backend) {}
static enum ggml_status graph_compute(ggml_backend_t b, struct ggml_cgraph *g) { return GGML_STATUS_FAILED; }
static void event(ggml_backend_t backend, ggml_backend_event_t event) {}

static ggml_backend_t init_backend(ggml_backend_dev_t device, const char *params) {
    static ggml_guid guid = "stand-in for GPU";
    ggml_backend_t backend = calloc(1, sizeof *backend);
    backend->guid = &guid;
    backend->get_name = backend_name;
    backend->free = free_backend;
    backend->synchronize = synchronize;
    backend->graph_compute = graph_compute;
    backend->event_record = event;
    backend->event_wait = event;
    backend->device = device;
    return backend;
}

// Devices.

static size_t number(ggml_backend_dev_t device) { return device - devices; }
static const char *device_name(ggml_backend_dev_t device) { return names[number(device)]; }
static const char *description(ggml_backend_dev_t device) { return "stand-in for a GPU"; }
static enum ggml_backend_dev_type device_type(ggml_backend_dev_t device) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
static ggml_backend_buffer_type_t memory(ggml_backend_dev_t device) { return &memories[number(device)]; }
static ggml_backend_buffer_type_t host_memory(ggml_backend_dev_t device) { return &pinned; }
static bool supports_op(ggml_backend_dev_t device, const struct ggml_tensor *op) { return true; }

static void get_memory(ggml_backend_dev_t device, size_t *free, size_t *total) {
    *free = *total = setting("STAND_IN_FREE_MIB", 1 << 20) << 20;
}

static void get_props(ggml_backend_dev_t device, struct ggml_backend_dev_props *props) {
    memset(props, 0, sizeof *props);
    props->name = device_name(device);
    props->description = description(device);
    props->type = device_type(device);
    props->caps.async = props->caps.host_buffer = props->caps.events = props->caps.mmap_support = true;
    get_memory(device, &props->memory_free, &props->memory_total);
}

static bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) { return type == memory(device); }

static bool offload_op(ggml_backend_dev_t device, const struct ggml_tensor *op) {
    switch (op->op) {
    case GGML_OP_GET_ROWS:
        return false;
    case GGML_OP_MUL_MAT:
        return op->ne[1] >= WORTH_COPYING;
    case GGML_OP_MUL_MAT_ID:
    case GGML_OP_ROPE:
    case GGML_OP_ROPE_BACK:
        return op->ne[2] >= WORTH_COPYING;
    default:
        return ggml_nrows(op) >= WORTH_COPYING;
    }
}

static ggml_backend_event_t event_new(ggml_backend_dev_t device) {
    ggml_backend_event_t made = calloc(1, sizeof *made);
    made->device = device;
    return made;
}

static void event_free(ggml_backend_dev_t device, ggml_backend_event_t event) { free(event); }
static void event_synchronize(ggml_backend_dev_t device, ggml_backend_event_t event) {}

static const char *registry_name(ggml_backend_reg_t reg) { return "CUDA"; }
static size_t device_count(ggml_backend_reg_t reg) { return count; }
static ggml_backend_dev_t get_device(ggml_backend_reg_t reg, size_t index) { return &devices[index]; }
static void *get_proc_address(ggml_backend_reg_t reg, const char *name) { return NULL; }

ggml_backend_reg_t ggml_backend_init(void) {
    count = setting("STAND_IN_GPUS", 1);
    if (count > MOST)
        return NULL;
    registry = (struct ggml_backend_reg){API_VERSION, registry_name, device_count, get_device, get_proc_address, NULL};
    for (size_t i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "CUDA%zu", i);
        memories[i] = (struct ggml_backend_buffer_type){
            .get_name = memory_name,
            .alloc_buffer = alloc_buffer,
            .get_alignment = alignment,
            .get_alloc_size = alloc_size,
            .device = &devices[i],
            .context = names[i],
        };
        devices[i] = (struct ggml_backend_device){
            .get_name = device_name,
            .get_description = description,
            .get_memory = get_memory,
            .get_type = device_type,
            .get_props = get_props,
            .init_backend = init_backend,
            .get_buffer_type = memory,
            .get_host_buffer_type = host_memory,
            .supports_op = supports_op,
            .supports_buft = supports_buft,
            .offload_op = offload_op,
            .event_new = event_new,
            .event_free = event_free,
            .event_synchronize = event_synchronize,
            .reg = &registry,
        };
    }
    pinned = (struct ggml_backend_buffer_type){
        .get_name = memory_name,
        .alloc_buffer = alloc_buffer,
        .get_alignment = host_alignment,
        .is_host = yes,
        .device = &devices[0],
        .context = "CUDA_Host",
    };
    return &registry;
}
