import QtQuick
import org.kde.plasma.configuration

ConfigModel {
    ConfigCategory {
        name: i18nc("@title a page of settings", "General")
        icon: "org.kernelcore.gpud"
        source: "ConfigGeneral.qml"
    }
}
