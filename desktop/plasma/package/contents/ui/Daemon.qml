/*
 * gpud on the bus: is it there, what does it say of itself, and what is asked of it. Never starts it, never waits for
 * it, and asks nothing while nothing changes.
 *
 * Plasma 6.3 can call over D-Bus and see names come and go, but hears no signals. So one "busctl wait" sleeps until gpud
 * says that something has changed, ends, and is started again. What changes before the next one hears is seen by one more
 * look, when other programs that were started after it have long had their answers from the bus. While nothing changes
 * there is no look, and there is no timer at all.
 */
import QtQuick
import org.kde.plasma.plasma5support as P5Support
import org.kde.plasma.workspace.dbus as DBus

import "figures.mjs" as Figures

Item {
    id: daemon

    /** auto, system or session. */
    property string wanted: "auto"

    /** Of models that are to be among what is shown, and what the names of the others have in them. */
    property var favourites: []
    property string search: ""

    /** What Overview() said last, in plain values; null while there is no gpud. */
    property var status: null

    /** The systemd of this machine has no "busctl wait": what is shown is as old as the last time somebody looked. */
    property bool deaf: false

    /** Something could not be done: what for, and why. */
    signal failed(var wish, string text)

    readonly property string service: "org.kernelcore.GpuD"
    readonly property string object: "/org/kernelcore/GpuD"
    readonly property string place: {
        if (wanted !== "session" && onSystem.registered)
            return "system";
        return wanted !== "system" && onSession.registered ? "session" : "";
    }
    readonly property var bus: place === "session" ? DBus.SessionBus : DBus.SystemBus

    /** The unique name of the gpud that is there: calls to it start nobody. */
    property string owner: ""

    /** Counts the gpuds that were there. The answers of one that has gone are nobody's. */
    property int life: 0

    property bool asking: false
    property bool askAgain: false
    property var jobs: ({})
    property var unanswered: []

    /** Tells the programs that were started from each other, and from those of another widget. */
    readonly property string tag: Math.random().toString(36).slice(2)
    property int runs: 0

    visible: false

    onPlaceChanged: reconsider()
    onSearchChanged: refresh()
    Component.onDestruction: unanswered.forEach(other => other.reply.finished.disconnect(other.finish))

    function reconsider() {
        life += 1;
        owner = "";
        status = null;
        asking = false;
        askAgain = false;
        jobs = {};
        deaf = false;
        waiter.end();
        if (place === "")
            return;
        send("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner", "(s)",
             [new DBus.string(service)], reply => {
            if (reply.isError)
                return; // It has gone again, and its name tells when it is back.
            owner = String(reply.value);
            waiter.begin();
            refresh();
        });
    }

    /**
     * A command line that was never there before: of one that was, the engine hands out what it said the last time.
     */
    function busctl(words) {
        runs += 1;
        const flag = place === "session" ? "--user" : "--system";
        return `env GPUD_RUN=${tag}-${runs} busctl ${flag} ${words}`;
    }

    /** Look now, or once more after the look that is under way. */
    function refresh() {
        if (owner === "")
            return;
        if (asking) {
            askAgain = true;
            return;
        }
        asking = true;
        const names = [...Array.from(favourites), ...Object.values(jobs).map(wish => wish.model)].slice(-Figures.MOST_NAMES);
        const choice = [new DBus.uint32(Figures.MOST_ASKED), new DBus.string(search), names];
        send(owner, object, service, "Overview", "(usas)", choice, reply => {
            asking = false;
            if (reply.isError && reply.error.name === "org.freedesktop.DBus.Error.ServiceUnknown") {
                reconsider(); // Another one has its name.
                return;
            }
            if (!reply.isError) {
                status = Figures.plain(reply.value);
                seeToJobs();
            }
            if (askAgain) {
                askAgain = false;
                refresh();
            }
        });
    }

    /** @param wish - kind, and model or job where it has any; passed on to failed() as it is. */
    function grant(wish) {
        const calls = {
            "load": ["Load", "s", wish.model],
            "unload": ["Unload", "s", wish.model],
            "unload-all": ["UnloadAll", ""],
            "cancel": ["CancelJob", "u", wish.job],
            "give-away": ["Yield", "ts", 0, "Plasma"],
            "take-back": ["Resume", ""],
        };
        const [member, signature, ...values] = calls[wish.kind];
        const wrapped = values.map((value, at) => wrap(signature[at], value));
        send(owner, object, service, member, signature === "" ? "" : `(${signature})`, wrapped, reply => {
            if (!reply.isError)
                granted(wish, wish.kind === "load" ? Number(reply.value) : 0);
            else if (reply.error.name === "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")
                asker.ask(wish, member, signature, values);
            else
                failed(wish, reply.error.message);
        });
    }

    function granted(wish, job) {
        if (job > 0)
            jobs[job] = wish;
        refresh();
    }

    function wrap(type, value) {
        if (type === "s")
            return new DBus.string(value);
        return type === "u" ? new DBus.uint32(value) : new DBus.uint64(value);
    }

    /** What became of the loads that were asked for here. */
    function seeToJobs() {
        for (const job of Object.keys(jobs).map(Number)) {
            const wish = jobs[job];
            const ended = Figures.outcome(status, job, wish.model);
            if (ended === null)
                continue;
            delete jobs[job];
            if (ended.result === "failed")
                failed(wish, ended.text);
            else if (ended.result === "unknown")
                explain(wish);
        }
    }

    function explain(wish) {
        send(owner, object, service, "Explain", "(su)", [new DBus.string(wish.model), new DBus.uint32(1)], reply => {
            const records = reply.isError ? [] : Figures.plain(reply.value);
            if (records.length && ["error", "warning"].includes(records[0].Level))
                failed(wish, records[0].Message);
        });
    }

    function send(name, path, iface, member, signature, values, done) {
        const asked = life;
        const reply = bus.asyncCall({
            "service": name, "path": path, "iface": iface, "member": member, "signature": signature, "arguments": values
        });
        const finish = () => {
            unanswered = unanswered.filter(other => other.reply !== reply);
            if (asked === life)
                done(reply);
        };
        if (reply.isFinished) {
            finish();
            return;
        }
        // Kept until it is answered: nothing else holds on to it, and what nobody holds is collected.
        unanswered.push({"reply": reply, "finish": finish});
        reply.finished.connect(finish);
    }

    DBus.DBusServiceWatcher {
        id: onSystem
        busType: DBus.BusType.System
        watchedService: daemon.service
    }

    DBus.DBusServiceWatcher {
        id: onSession
        busType: DBus.BusType.Session
        watchedService: daemon.service
    }

    P5Support.DataSource {
        id: waiter

        property string current: ""

        engine: "executable"

        function end() {
            current = "";
            // What it still says when it is ended is nobody's.
            for (const source of connectedSources.slice())
                disconnectSource(source);
        }

        function begin() {
            end();
            current = daemon.busctl(`wait ${daemon.service} ${daemon.object} org.freedesktop.DBus.Properties PropertiesChanged`);
            connectSource(current);
            const bus = "org.freedesktop.DBus";
            const later = () => daemon.busctl(`call ${bus} /org/freedesktop/DBus ${bus} GetId`);
            settler.connectSource(`${later()} && ${later()}`);
        }

        onNewData: (source, data) => {
            if (source !== current)
                return;
            if (data["exit code"] !== 0) {
                end();
                daemon.deaf = true;
                return;
            }
            begin();
            daemon.refresh();
        }
    }

    P5Support.DataSource {
        id: settler

        engine: "executable"

        // By now the "busctl wait" that was started before hears, and what it missed is seen.
        onNewData: source => {
            disconnectSource(source);
            daemon.refresh();
        }
    }

    P5Support.DataSource {
        id: asker

        property var wishes: ({})

        engine: "executable"

        /** Once more, and this time a person may be asked for a password; Plasma's own calls do not allow that. */
        function ask(wish, member, signature, values) {
            const words = [daemon.owner, daemon.object, daemon.service, member];
            if (signature !== "")
                words.push(signature, ...values);
            const line = daemon.busctl("--auto-start=no --timeout=120 call " + words.map(Figures.quoted).join(" "));
            wishes[line] = wish;
            connectSource(line);
        }

        onNewData: (source, data) => {
            disconnectSource(source);
            const wish = wishes[source];
            delete wishes[source];
            if (data["exit code"] === 0)
                daemon.granted(wish, wish.kind === "load" ? Number(data["stdout"].split(" ")[1]) : 0);
            else
                daemon.failed(wish, String(data["stderr"]).trim());
        }
    }
}
