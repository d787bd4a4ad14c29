// What the widget shows, worked out from what gpud says of itself. Plain values in, plain values out: it touches neither
// the bus nor the screen.

import {_, brief, fill, percent, plural, size, used} from './words.js';

const MOST_FAVOURITES = 10;
export const MOST_USED = 5;

/**
 * A menu that is longer than the screen cannot be scrolled, and other parts of the shell's stand above and below it. This
 * share of the screen is for all rows; what each takes is in pixels, as the shell's own theme draws them.
 */
const SHARE = 0.65;
const ROWS = {ends: 110, device: 70, line: 20, note: 56, model: 57, detail: 40, title: 42, choice: 36};
const LEAST_MODELS = 2;

/** So many choices come before further models. */
const KEPT_CHOICES = 2;

/** States in which a model has, or is about to have, an engine. */
const PRESENT = ['ready', 'busy', 'loading', 'queued', 'unloading'];

export function isPresent(model) {
    return PRESENT.includes(model.State);
}

/** What has a row, and what comes first. */
const SHOWN_FIRST = ['busy', 'ready', 'loading', 'unloading', 'queued', 'failed'];

/**
 * @param {object} status - as Overview() answers, without the types
 * @param {object} preferences - favourites (names), amber and red (percent), height (of the screen in pixels; no
 *     matter where it is left out)
 * @param {boolean} looked - the status was asked for by whoever looks at it: gpud measures while a model is there, and when
 *     it is asked; what it had measured before it has let go of the driver is an old figure
 * @returns {object} what to show; the same input gives the same output
 */
export function figures(status, preferences, looked) {
    const models = status.Models ?? [];
    const present = models.filter(isPresent);
    const there = models.filter(model => SHOWN_FIRST.includes(model.State))
        .sort((a, b) => rankOf(a) - rankOf(b));
    const keeper = (status.Holds ?? []).find(hold => hold.What.split(':').includes('load'));
    const yielded = Object.keys(status.Yielded ?? {}).length > 0;
    const away = yielded || keeper !== undefined || status.State === 'yielded';
    const devices = devicesOf(status, preferences, present.length > 0, looked);
    const fullest = devices.reduce((most, device) => Math.max(most, device.percent), 0);
    const level = levelOf(fullest, preferences);
    // While nothing is loaded gpud lets the driver sleep: a figure in the top bar would be an old one.
    const told = present.length && fullest ? percent(fullest) : '';
    const subtitle = subtitleOf(status, present, away);
    const note = noteOf(status);
    const several = present.filter(model => model.State !== 'unloading').length > 1;
    const rows = there.map(modelOf);
    let room = SHARE * (preferences.height ?? Infinity) - ROWS.ends - (note ? ROWS.note : 0) - (several ? ROWS.choice : 0);
    devices.forEach(device => {
        room -= ROWS.device + (device.others ? ROWS.line : 0);
    });
    const shown = fitting(rows, room - ROWS.title - (1 + KEPT_CHOICES) * ROWS.choice, heightOf, LEAST_MODELS);
    room -= shown.reduce((sum, row) => sum + heightOf(row), 0);
    const hidden = rows.length - shown.length;
    const chosen = choicesOf(models, preferences.favourites);
    const choices = fitting(chosen, room - ROWS.title - ROWS.choice - (hidden ? ROWS.choice : 0), () => ROWS.choice, 0);
    const full = chosen.length > 0 && choices.length === 0;
    const unseen = models.length - present.length - choices.length + (status.Others ?? 0);
    return {
        icon: iconOf(present, away),
        level: present.length ? level : '',
        percent: told,
        subtitle,
        // The button has room for a word or two.
        short: present.length || away || subtitle !== _('Nothing loaded') ? subtitle : _('No model'),
        headline: headlineOf(devices, subtitle),
        accessible: [_('GPU'), subtitle, told, present.length ? levelWord(level) : ''].filter(part => part).join(', '),
        checked: present.some(model => model.State !== 'unloading'),
        note,
        devices,
        models: shown,
        hidden: hidden ? plural('{count} more: “gpudctl status”', '{count} more: “gpudctl status”', hidden) : '',
        choices,
        more: unseen > 0 && !full ? plural('{count} more: “gpudctl models list”', '{count} more: “gpudctl models list”', unseen) : '',
        gpus: Math.max(1, devices.filter(device => device.id !== 'host').length),
        several,
        yielded: away,
        // Others keep the GPU empty for as long as they like: Resume would not end that.
        keeper: !yielded && keeper ? keeper.Application || keeper.Reason || keeper.Caller || '?' : '',
    };
}

/**
 * The models of the preferences: the favourites in their order, then at most so many others by name. With a search
 * only those that have it in their names, as gpud compares: its answer has favourites and what is loaded in any case.
 */
export function listed(status, favourites, search, most) {
    const wanted = search.trim().toLowerCase();
    const matches = ({Id, DisplayName = '', Aliases = []}) =>
        [Id, DisplayName, ...Aliases].some(name => name.toLowerCase().includes(wanted));
    const models = new Map((status.Models ?? []).map(model => [model.Id, model]));
    const chosen = favourites.filter(name => matches(models.get(name) ?? {Id: name}));
    const others = [...models.values()].filter(matches).map(model => model.Id).filter(name => !favourites.includes(name));
    const unseen = Math.max(0, others.length - most) + (status.Others ?? 0);
    return {names: [...chosen, ...others.slice(0, most).sort()], unseen, searches: unseen > 0 || search !== ''};
}

/** A row does not move when its model begins to answer. */
function rankOf(model) {
    return SHOWN_FIRST.indexOf(model.State === 'busy' ? 'ready' : model.State);
}

function heightOf(row) {
    return ROWS.model + (row.detail ? ROWS.detail : 0);
}

/** As many of them as there is room for, and so many in any case. */
function fitting(rows, room, height, least) {
    let left = room;
    const end = rows.findIndex((row, position) => {
        left -= height(row);
        return left < 0 && position >= least;
    });
    return end < 0 ? rows : rows.slice(0, end);
}

function iconOf(present, away) {
    if (away)
        return 'gpud-away-symbolic';
    return present.length ? 'gpud-loaded-symbolic' : 'gpud-idle-symbolic';
}

function nameOf(model) {
    return model.DisplayName || model.Id;
}

function subtitleOf(status, present, away) {
    if (status.State === 'suspending')
        return _('Going to sleep');
    if (status.State === 'unavailable')
        return _('Not available');
    const loading = present.find(model => model.State === 'loading');
    if (loading)
        return fill(_('Loading {model}'), {model: nameOf(loading)});
    const loaded = present.filter(model => ['ready', 'busy'].includes(model.State));
    if (loaded.length) {
        const first = loaded.find(model => model.Id === status.ActiveModel) ?? loaded[0];
        if (loaded.length === 1)
            return nameOf(first);
        const more = loaded.length - 1;
        return fill(plural('{model} and {count} more', '{model} and {count} more', more), {model: nameOf(first)});
    }
    if (away)
        return _('Given away');
    const waiting = present.find(model => model.State === 'queued');
    if (waiting)
        return fill(_('{model} waits'), {model: nameOf(waiting)});
    return present.length ? _('Unloading') : _('Nothing loaded');
}

/** llama3.2 · 2.1/6.0 GiB */
function headlineOf(devices, subtitle) {
    if (!devices.length || devices.some(device => device.usedBytes === null))
        return subtitle;
    const sum = key => devices.reduce((bytes, device) => bytes + device[key], 0);
    return `${subtitle} · ${brief(sum('usedBytes'), sum('totalBytes'))}`;
}

function noteOf(status) {
    switch (status.Degraded ?? '') {
    case '':
        return status.State === 'unavailable' ? _('The GPU does not answer: “gpudctl doctor” looks why.') : '';
    case 'gpu-unavailable':
        return _('The GPU does not answer: “gpudctl doctor” looks why.');
    case 'state-not-kept':
        return _('What gpud learns is not kept, perhaps because a disk is full: “gpudctl doctor” looks why.');
    case 'cuda-unavailable':
        return _('The driver does not let programs compute: “gpudctl doctor” looks why.');
    case 'cpu-fallback':
        return _('A model runs on the processor instead of the GPU: “gpudctl doctor” looks why.');
    case 'driver-mismatch':
        return _('The driver was updated: restart the computer.');
    case 'over-budget':
        return _('More memory is in use than gpud may use.');
    case 'backend-missing':
        return _('A program that runs models is not installed: “gpudctl doctor” says which.');
    default:
        return fill(_('Something is wrong ({word}): “gpudctl doctor” looks what.'), {word: status.Degraded});
    }
}

function levelOf(share, {amber, red}) {
    if (share >= red)
        return 'red';
    return share >= amber ? 'amber' : '';
}

function levelWord(level) {
    if (level === 'red')
        return _('nearly full');
    return level === 'amber' ? _('filling up') : '';
}

function devicesOf(status, preferences, measured, looked) {
    const all = (status.Gpus ?? []).filter(gpu => gpu.VramTotal > 0);
    const gpus = all.filter(gpu => gpu.Uuid !== 'host');
    return (gpus.length ? gpus : all).map(gpu => {
        const known = gpu.VramUsed !== undefined && (measured || looked);
        const share = known ? 100 * gpu.VramUsed / gpu.VramTotal : 0;
        const level = levelOf(share, preferences);
        const name = gpu.Uuid === 'host' ? _('Main memory') : gpu.Name;
        // A driver that gpud has let go for want of models is not asked: that would wake the GPU.
        const unknown = measured ? _('{size}, use unknown') : _('{size}, not measured while nothing is loaded');
        const text = known ? used(gpu.VramUsed, gpu.VramTotal) : fill(unknown, {size: size(gpu.VramTotal)});
        const others = known && gpu.VramForeign
            ? fill(_('{size} of it by other programs'), {size: size(gpu.VramForeign)}) : '';
        return {
            id: gpu.Uuid,
            name,
            text,
            others,
            percent: share,
            usedBytes: known ? gpu.VramUsed : null,
            totalBytes: gpu.VramTotal,
            level,
            accessible: [name, text, others, levelWord(level)].filter(part => part).join(', '),
        };
    });
}

function modelOf(model) {
    const name = nameOf(model);
    const bytes = model.VramBytes || model.NeedBytes || model.VramEstimate || 0;
    const held = bytes ? size(bytes) : '';
    const [text, action] = {
        ready: () => [held, _('Unload {model}')],
        busy: () => [held ? fill(_('{size}, answering'), {size: held}) : _('answering'), _('Unload {model}')],
        loading: () => [
            model.Progress === undefined
                ? _('loading') : fill(_('loading, {percent}'), {percent: percent(100 * model.Progress)}),
            _('Stop loading {model}'),
        ],
        queued: () => [_('waits for memory'), _('Stop waiting for {model}')],
        unloading: () => [_('unloading'), ''],
        failed: () => [_('could not be loaded'), _('Dismiss {model}')],
    }[model.State]();
    const detail = {failed: model.Error, queued: model.WaitsFor}[model.State] ?? '';
    return {id: model.Id, name, text, detail, action: action && fill(action, {model: name})};
}

/** Favourites that are not loaded, in their order; without a favourite that is there, what was used last. */
function choicesOf(models, favourites) {
    const idle = models.filter(model => !isPresent(model));
    const chosen = models.some(model => favourites.includes(model.Id))
        ? favourites.map(name => idle.find(model => model.Id === name)).filter(model => model)
            .slice(0, MOST_FAVOURITES)
        : lastUsed(idle).slice(0, MOST_USED);
    return chosen.map(model => {
        const bytes = model.NeedBytes || model.VramEstimate || 0;
        const name = nameOf(model);
        return {
            id: model.Id,
            name,
            text: bytes ? size(bytes) : '',
            accessible: fill(_('Load {model}'), {model: name}),
        };
    });
}

/** Those that were used, the last one first; where these are few, the others by their names. */
function lastUsed(models) {
    const byName = (a, b) => compare(nameOf(a), nameOf(b));
    const used = models.filter(model => model.LastUsedUSec)
        .sort((a, b) => b.LastUsedUSec - a.LastUsedUSec || byName(a, b));
    return used.length >= MOST_USED ? used : [...used, ...models.filter(model => !model.LastUsedUSec).sort(byName)];
}

function compare(a, b) {
    return a < b ? -1 : Number(a > b);
}
