/* What the widget says. It keeps nothing, and asks nobody. */
import QtQuick

QtObject {
    function number(value) {
        return Number(value).toLocaleString(Qt.locale(), "f", 1);
    }

    /** GiB from one GiB on, else MiB. */
    function size(bytes) {
        const gib = 1024 * 1024 * 1024;
        if (bytes >= gib)
            return i18nc("a size of memory", "%1 GiB", number(bytes / gib));
        return i18nc("a size of memory", "%1 MiB", Math.round(bytes / 1024 / 1024));
    }

    function percent(value) {
        return i18nc("a percentage", "%1 %", value);
    }

    /** The one sentence that matters most. */
    function headline(now) {
        if (now.state === "unavailable")
            return i18n("The GPU does not answer");
        if (now.state === "suspending")
            return i18n("Going to sleep");
        if (now.state === "yielded")
            return i18np("The GPU is given away", "The GPUs are given away", now.gpus);
        if (now.state === "loading" && now.changing)
            return i18nc("%1 is the name of a model", "Loading %1", label(now.changing));
        if (now.state === "unloading" && now.changing)
            return i18nc("%1 is the name of a model", "Unloading %1", label(now.changing));
        if (now.active === null)
            return i18n("No model is loaded");
        if (now.loadedCount > 1) {
            const others = now.loadedCount - 1;
            return i18ncp("%2 is the name of a model", "%2 and %1 more are loaded", "%2 and %1 more are loaded", others,
                          label(now.active));
        }
        if (now.active.State === "busy")
            return i18nc("%1 is the name of a model", "%1 answers", label(now.active));
        return i18nc("%1 is the name of a model", "%1 is loaded", label(now.active));
    }

    function label(model) {
        return model.DisplayName || model.Id;
    }

    /** How full everything is, on one line. */
    function memory(now) {
        if (!now.total)
            return i18n("How full the GPU is, is not known");
        if (!now.measured)
            return unmeasured(now.total, now.fresh);
        const share = percent(Math.floor(100 * now.used / now.total));
        return i18nc("used, total, percentage", "%1 of %2 in use (%3)", size(now.used), size(now.total), share);
    }

    /** Instead of what is used. */
    function unmeasured(total, fresh) {
        return fresh ? i18nc("%1 is a size", "%1, use unknown", size(total))
                     : i18nc("%1 is a size", "%1, not measured while nothing is loaded", size(total));
    }

    /** Below the name of a GPU. */
    function use(device, fresh) {
        if (!device.measured)
            return unmeasured(device.total, fresh);
        return i18nc("used of total; what others hold", "%1 of %2 in use. %3", size(device.used), size(device.total),
                     others(device.foreign));
    }

    /** Models that are not in the list. */
    function more(count) {
        return i18np("%1 more: search for it here, or with gpudctl models list",
                     "%1 more: search for them here, or with gpudctl models list", count);
    }

    function others(bytes) {
        return i18nc("%1 is a size", "Other programs: %1", size(bytes));
    }

    function device(device) {
        return device.onHost ? i18n("Memory of this machine") : device.name || i18n("GPU");
    }

    function tooltip(now) {
        const lines = now.degraded ? [degraded(now.degraded)] : [];
        return [...lines, memory(now), ...now.measured ? [others(now.foreign)] : []].join("\n");
    }

    function degraded(word) {
        const known = {
            "cuda-unavailable": i18n("CUDA does not work"),
            "cpu-fallback": i18n("An engine runs on the processor although there is a GPU"),
            "driver-mismatch": i18n("The GPU's driver and its libraries are of different versions: reboot"),
            "over-budget": i18n("The models hold more than the budget"),
            "backend-missing": i18n("A configured engine cannot be found"),
            "gpu-unavailable": i18n("A GPU does not answer"),
            "state-not-kept": i18n("The state directory cannot be written"),
        };
        return i18nc("%1 is what is wrong", "%1; gpudctl doctor says more", known[word] ?? word);
    }

    /** Below the name of a model. */
    function state(row) {
        switch (row.state) {
        case "busy":
            return i18nc("%1 is a size", "%1, answering", size(row.size));
        case "loading":
            return row.progress > 0 ? i18nc("a percentage", "loading, %1", percent(Math.floor(100 * row.progress)))
                                    : i18n("loading");
        case "unloading":
            return i18n("being unloaded");
        case "queued":
            return row.waitsFor ? i18nc("%1 is what a model waits for", "waiting for %1", row.waitsFor)
                                : i18n("waiting for memory");
        }
        return size(row.size);
    }

    function end(row) {
        if (row.state === "loading")
            return i18nc("%1 is the name of a model", "Stop loading %1", row.label);
        if (row.state === "queued")
            return i18nc("%1 is the name of a model", "Stop waiting for %1", row.label);
        return i18nc("%1 is the name of a model", "Unload %1", row.label);
    }

    /** The head of the message about a wish that came to nothing, on a machine with so many GPUs. */
    function failure(wish, gpus) {
        switch (wish.kind) {
        case "load":
            return i18nc("%1 is the name of a model", "%1 could not be loaded", wish.model);
        case "unload":
            return i18nc("%1 is the name of a model", "%1 could not be unloaded", wish.model);
        case "cancel":
            return i18nc("%1 is the name of a model", "The wait of %1 could not be ended", wish.model);
        case "unload-all":
            return i18n("The models could not be unloaded");
        case "give-away":
            return i18np("The GPU could not be given away", "The GPUs could not be given away", gpus);
        }
        return i18np("The GPU could not be taken back", "The GPUs could not be taken back", gpus);
    }
}
