_barfs_addresses() { compadd -- /sys/bus/pci/devices/*(N:t) }

_barfs_devices() {
    if compset -P vfio-user:; then
        _files
    else
        compadd -- demo /sys/bus/pci/devices/*(N:t)
        compadd -S '' -- vfio-user:
    fi
}

_barfs_devices_or_directories() { _barfs_devices; _files -/ }

_barfs_programs() { _command_names -e; _files }

_barfs_groups() { _groups }

_barfs_users() { _users }

_barfs_regions() { compadd -- bar0 bar1 bar2 bar3 bar4 bar5 rom config }

_barfs_options() { compset -P '*,'; compadd -S '' -- @options@ }

_barfs_names() {
    local -a found
    found=(${(f)"$(sh -c @names@ sh "$PREFIX" "${(@)words[1,CURRENT-1]}")"})
    compadd -S '' -- ${(M)found:#*[./]}
    compadd -- ${found:#*[./]}
}
# --- after shtab
