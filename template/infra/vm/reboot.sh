# Reboots if an update of the operating system is installed, and waits for that.
if update_engine_client --status 2>&1 | grep --quiet NEED_REBOOT; then
    systemctl stop dagster-daemon # so that it launches no run into the reboot
    systemctl reboot
fi
