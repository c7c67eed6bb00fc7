_barfs_addresses() {
    local folder names=
    for folder in /sys/bus/pci/devices/*; do names+=" ${folder##*/}"; done
    compgen -W "$names" -- "$1"
}

_barfs_devices() {
    _barfs_addresses "$1"
    local socket=${1#vfio-user:}
    if [[ $socket != "$1" ]]; then
        compgen -P vfio-user: -f -- "$socket"
    else
        compgen -W "demo vfio-user:" -- "$1"
    fi
}

_barfs_devices_or_directories() {
    _barfs_devices "$1"
    compgen -d -- "$1"
}

_barfs_programs() { compgen -c -- "$1"; compgen -f -- "$1"; }

_barfs_groups() { compgen -g -- "$1"; }

_barfs_users() { compgen -u -- "$1"; }

_barfs_regions() { compgen -W "bar0 bar1 bar2 bar3 bar4 bar5 rom config" -- "$1"; }

_barfs_options() {
    local before=
    [[ $1 == *,* ]] && before=${1%,*},
    compgen -P "$before" -W "@options@" -- "${1##*,}"
}
_barfs_names() { sh -c @names@ sh "$1" "${COMP_WORDS[@]:2:COMP_CWORD-2}"; }
# --- after shtab

# Bash splits words at colons and "=", which addresses and options contain. So split the line again,
# at blanks only, and remove the part up to the last such sign from the answers.
_barfs() {
    local line=${COMP_LINE:0:COMP_POINT} last reply
    local -a COMP_WORDS
    read -ra COMP_WORDS <<<"$line"
    [[ $line == *[[:blank:]] ]] && COMP_WORDS+=("")
    local COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    last=${COMP_WORDS[COMP_CWORD]}
    _shtab_barfs
    ((${#COMPREPLY[@]})) || return 0
    local before=${last%"${last##*[:=]}"}
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
    for reply in "${COMPREPLY[@]}"; do
        [[ $reply == *[=:./] ]] && compopt -o nospace 2>/dev/null
        [[ -d $reply ]] || return 0
    done
    compopt -o filenames 2>/dev/null || :
}
complete -o bashdefault -F _barfs barfs
