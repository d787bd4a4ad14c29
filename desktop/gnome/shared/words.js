// The words that people read: translated, with names and figures put in.

let translate = text => text;
let translatePlural = (one, many, count) => (count === 1 ? one : many);

/** From now on words come through these, which know the extension's translations. */
export function speak(gettext, ngettext) {
    translate = gettext;
    translatePlural = ngettext;
}

export function _(text) {
    return translate(text);
}

export function plural(one, many, count) {
    return fill(translatePlural(one, many, count), {count: count.toLocaleString()});
}

/** Puts values in for {names}; what is not named stays as it is. */
export function fill(text, values) {
    return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** 5.1 GiB, 640 MiB: with one digit behind the point of the reader's language where it is worth one. */
export function size(bytes) {
    if (bytes < GIB)
        return fill(_('{number} MiB'), {number: Math.round(bytes / MIB)});
    return fill(_('{number} GiB'), {number: gib(bytes)});
}

/** 4.2 of 6.0 GiB used: both in the unit of the total. */
export function used(usedBytes, totalBytes) {
    if (totalBytes < GIB) {
        return fill(_('{used} of {total} MiB used'), {
            used: Math.round(usedBytes / MIB), total: Math.round(totalBytes / MIB),
        });
    }
    return fill(_('{used} of {total} GiB used'), {used: gib(usedBytes), total: gib(totalBytes)});
}

/** 4.2/6.0 GiB */
export function brief(usedBytes, totalBytes) {
    if (totalBytes < GIB) {
        return fill(_('{used}/{total} MiB'), {
            used: Math.round(usedBytes / MIB), total: Math.round(totalBytes / MIB),
        });
    }
    return fill(_('{used}/{total} GiB'), {used: gib(usedBytes), total: gib(totalBytes)});
}

export function percent(number) {
    return fill(_('{number}%'), {number: Math.round(number)});
}

function gib(bytes) {
    return (bytes / GIB).toLocaleString(undefined, {minimumFractionDigits: 1, maximumFractionDigits: 1});
}
