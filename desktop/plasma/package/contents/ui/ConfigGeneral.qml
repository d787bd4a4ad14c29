/* The settings. Favourites can be chosen in the popup as well. */
import QtQuick
import QtQuick.Controls as QQC2
import QtQuick.Layouts
import org.kde.kcmutils as KCM
import org.kde.kirigami as Kirigami

KCM.SimpleKCM {
    id: page

    property var cfg_favourites: []
    property alias cfg_amber: amber.value
    property alias cfg_red: red.value
    property alias cfg_showPercent: showPercent.checked
    property string cfg_bus: "auto"

    Kirigami.FormLayout {
        QQC2.SpinBox {
            id: amber

            Kirigami.FormData.label: i18nc("@label:spinbox", "Amber from, in percent:")
            from: 1
            to: red.value
        }
        QQC2.SpinBox {
            id: red

            Kirigami.FormData.label: i18nc("@label:spinbox", "Red from, in percent:")
            from: amber.value
            to: 100
        }
        QQC2.CheckBox {
            id: showPercent

            text: i18nc("@option:check", "Show the percentage beside the icon in a panel")
        }
        QQC2.TextField {
            id: favourites

            Kirigami.FormData.label: i18nc("@label:textbox", "Favourites:")
            Layout.fillWidth: true
            placeholderText: i18nc("@info:placeholder", "Names of models, with commas between them")
            text: Array.from(page.cfg_favourites).join(", ")
            onTextEdited: page.cfg_favourites = text.split(",").map(name => name.trim()).filter(name => name !== "")
        }
        QQC2.ComboBox {
            id: bus

            Kirigami.FormData.label: i18nc("@label:listbox", "Show:")
            textRole: "text"
            valueRole: "value"
            model: [
                {"value": "auto", "text": i18nc("@item:inlistbox which gpud is shown", "The gpud of this machine, else that of this session")},
                {"value": "system", "text": i18nc("@item:inlistbox which gpud is shown", "The gpud of this machine")},
                {"value": "session", "text": i18nc("@item:inlistbox which gpud is shown", "The gpud of this session")}
            ]
            currentIndex: Math.max(0, model.findIndex(entry => entry.value === page.cfg_bus))
            onActivated: page.cfg_bus = currentValue
        }
    }
}
