function _barfs_addresses
    path basename /sys/bus/pci/devices/* 2>/dev/null
end

function _barfs_devices
    _barfs_addresses
    printf '%s\n' demo vfio-user:
end

function _barfs_devices_or_directories
    _barfs_devices
    __fish_complete_directories (commandline -ct)
end

function _barfs_programs
    complete -C ''
    __fish_complete_path (commandline -ct)
end

function _barfs_groups
    __fish_complete_groups
end

function _barfs_users
    __fish_complete_users
end

function _barfs_regions
    printf '%s\n' bar0 bar1 bar2 bar3 bar4 bar5 rom config
end

function _barfs_options
    set -l before (string match -r '^.*,' -- (commandline -ct))
    printf "$before%s\n" @options@
end

function _barfs_names
    sh -c @names@ sh (commandline -ct) (commandline -opc)
end
# --- after shtab
