// What the widget shows, worked out from what gpud says of itself: plain values in, plain values out. It touches neither
// the bus nor the screen, and has no words.

export const HOST = "host";

const LOADED = ["ready", "busy"];
const PRESENT = ["ready", "busy", "loading", "queued", "unloading"];

/** At most so many models are offered while nobody has chosen favourites. */
export const MOST_OFFERED = 8;

/** So many models gpud is asked for beside those that are there and the favourites: of thousands nobody reads a list. */
export const MOST_ASKED = 50;

/** So many names gpud is asked for. */
export const MOST_NAMES = 100;

/** A value from the bus without its wrapping: Plasma hands numbers and texts over as objects of their own. */
export function plain(value) {
    if (value === null || value === undefined || typeof value !== "object")
        return value;
    if (Array.isArray(value) || typeof value.length === "number")
        return Array.from(value, plain);
    if ("value" in value && typeof value.toString === "function" && Object.keys(value).every(isOfWrapper))
        return plain(value.value);
    const found = {};
    for (const key of Object.keys(value))
        found[key] = plain(value[key]);
    return found;
}

function isOfWrapper(key) {
    return key === "value" || key === "toString" || key === "objectName";
}

/**
 * @param {object} status - as Overview() answers, in plain values; any of it may be missing
 * @param {object} preferences - favourites (names), amber and red (percent)
 * @param {string} search - what the names of models that are offered have in them; "": all are
 * @param {boolean} looked - the status was asked for by whoever looks at it
 */
export function figures(status, preferences, search = "", looked = false) {
    const models = (status.Models ?? []).filter(model => model.Id);
    // gpud measures while a model is there, and when it is asked. What it had measured before it has let go of the driver,
    // for want of models, is an old figure.
    const fresh = models.some(isPresent);
    const devices = devicesOf(status, fresh || looked);
    const fullest = devices.reduce((most, device) => Math.max(most, device.percent), 0);
    const loaded = models.filter(isLoaded);
    const yielded = Object.keys(status.Yielded ?? {}).length > 0;
    const offered = offeredOf(models, preferences.favourites ?? [], search);
    const others = status.Others ?? 0;
    const jobs = new Map((status.Jobs ?? []).filter(job => job.Kind === "load").map(job => [job.Model, job.Id]));
    return {
        state: status.State ?? "",
        degraded: status.Degraded ?? "",
        active: models.find(model => model.Id === status.ActiveModel) ?? loaded[0] ?? null,
        changing: models.find(model => model.State === status.State) ?? null,
        loadedCount: loaded.length,
        devices,
        onHost: devices.length > 0 && devices.every(device => device.onHost),
        used: sum(devices, "used"),
        total: sum(devices, "total"),
        measured: devices.length > 0 && devices.every(device => device.measured),
        gpus: Math.max(1, devices.filter(device => !device.onHost).length),
        foreign: sum(devices, "foreign"),
        percent: fullest,
        fresh,
        level: fresh ? levelOf(fullest, preferences) : "",
        present: models.filter(isPresent).map(model => rowOf(model, jobs)),
        offered,
        others,
        // More than are seen at one glance, or searched already.
        searches: search !== "" || others > 0 || offered.length > MOST_OFFERED,
        configured: status.ModelCount ?? models.length,
        yielded,
        // Given away by a program that inhibits loading: Resume would not end that.
        kept: !yielded && status.State === "yielded",
    };
}

export function isLoaded(model) {
    return LOADED.includes(model.State);
}

export function isPresent(model) {
    return PRESENT.includes(model.State);
}

export function levelOf(percent, preferences) {
    if (percent >= preferences.red)
        return "red";
    return percent >= preferences.amber ? "amber" : "";
}

function devicesOf(status, told) {
    const known = (status.Gpus ?? []).filter(gpu => gpu.VramTotal > 0);
    const gpus = known.filter(gpu => gpu.Uuid !== HOST);
    return (gpus.length ? gpus : known).map(gpu => {
        // A driver that gpud has let go for want of models is not asked: that would wake the GPU.
        const measured = told && gpu.VramUsed !== undefined;
        const used = measured ? Math.min(gpu.VramUsed, gpu.VramTotal) : 0;
        return {
            name: gpu.Name ?? "",
            onHost: gpu.Uuid === HOST,
            measured,
            used,
            total: gpu.VramTotal,
            foreign: Math.min(gpu.VramForeign ?? 0, used),
            // Rounded down: 90 is said when 90 is reached.
            percent: Math.floor(100 * used / gpu.VramTotal),
        };
    });
}

function sum(devices, key) {
    return devices.reduce((total, device) => total + device[key], 0);
}

function rowOf(model, jobs) {
    return {
        name: model.Id,
        label: model.DisplayName || model.Id,
        state: model.State,
        size: model.VramBytes || model.NeedBytes || model.VramEstimate || 0,
        progress: model.Progress ?? 0,
        waitsFor: model.WaitsFor ?? "",
        // What a click on it ends: a wait by its job, everything else by unloading.
        job: model.State === "queued" ? jobs.get(model.Id) ?? 0 : 0,
        canEnd: model.State !== "unloading" && (model.State !== "queued" || jobs.has(model.Id)),
    };
}

/** What may be loaded: favourites in their order first; without any, what was used last; with a search what it found. */
function offeredOf(models, favourites, search) {
    const idle = models.filter(model => !isPresent(model) && matches(model, search));
    const rank = name => {
        const place = favourites.indexOf(name);
        return place < 0 ? favourites.length : place;
    };
    const recent = (a, b) => (b.LastUsedUSec ?? 0) - (a.LastUsedUSec ?? 0) || (a.Id < b.Id ? -1 : 1);
    idle.sort((a, b) => rank(a.Id) - rank(b.Id) || recent(a, b));
    const chosen = favourites.some(name => models.some(model => model.Id === name));
    return idle.map((model, place) => ({
        name: model.Id,
        label: model.DisplayName || model.Id,
        // What it would need, as far as gpud knows or foresees it.
        size: model.NeedBytes || model.VramEstimate || 0,
        favourite: favourites.includes(model.Id),
        failed: model.State === "failed",
        error: [model.Error, model.ErrorHint].filter(text => text).join("; "),
        first: search !== "" || (chosen ? favourites.includes(model.Id) : place < MOST_OFFERED),
    }));
}

/** As gpud compares: favourites and what has failed are in its answer whatever is searched for. */
function matches(model, search) {
    const wanted = search.trim().toLowerCase();
    return [model.Id, model.DisplayName ?? "", ...model.Aliases ?? []].some(name => name.toLowerCase().includes(wanted));
}

/** How the job of a load has ended, as far as the models tell: "", "failed" with why, or "unknown". */
export function outcome(status, job, name) {
    if ((status.Jobs ?? []).some(known => known.Id === job))
        return null;
    const model = (status.Models ?? []).find(known => known.Id === name);
    if (!model)
        return {result: "unknown", text: ""};
    if (isPresent(model))
        return {result: "", text: ""};
    const text = [model.Error, model.ErrorHint].filter(part => part).join("; ");
    return model.State === "failed" || text ? {result: "failed", text} : {result: "unknown", text: ""};
}

/** A word of a command line, whatever is in it. */
export function quoted(word) {
    return "'" + String(word).replace(/'/g, "'\\''") + "'";
}

/** The favourites with this one added, or taken out where it was one. */
export function turned(favourites, name) {
    return favourites.includes(name) ? favourites.filter(known => known !== name) : [...favourites, name];
}
