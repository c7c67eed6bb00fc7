# sh -c THIS sh TYPED WORD...
# Prints what TYPED can become, a line each: names of registers, with a dot (or a slash, if TYPED has
# some) behind blocks. They are those of the first WORD that is a device or a region in a mount; no device is opened.

typed=$1
shift
case $typed in *[!A-Za-z0-9_./]*) exit 0 ;; esac

# The folders in which the mounts have the registers of a DEVICE.
mounted() {
    while read -r _ place kind _; do
        [ "$kind" = fuse.barfs ] || continue
        place=$(printf '%b' "$(printf %s "$place" | sed 's/\\\([0-7]\)/\\0\1/g')")
        timeout -s KILL 1 cat "$place/.barfs" 2>/dev/null | tr '{,}' '\n\n\n' |
            sed -n 's/.*"\([0-9a-f:]*\.[0-7]\)": "\(.*\)".*/\1 \2/p' |
            while read -r address source; do
                case $1 in "$address" | "${address#0000:}" | "$source") ;; *) continue ;; esac
                printf '%s\n' "$place/bus/$address/registers"
            done
    done </proc/mounts
}

# The folders of registers, one of each region, of a word of the command line.
folders() {
    word=$(printf %s "$1" | sed "s/^[\"']//; s/[\"']\$//; s/\\\\\\(.\\)/\\1/g")
    case $word in "~/"*) word=$HOME/${word#??} ;; esac
    if [ -d "$word/registers" ]; then
        printf '%s\n' "$word"/registers/*/
    elif [ -f "$word" ]; then
        case $word in */*) ;; *) word=./$word ;; esac
        printf '%s\n' "${word%/*}/registers/${word##*/}"
    elif [ ! -e "$word" ]; then
        region=
        case $word in
        *:bar[0-5] | *:rom | *:config | *:region[0-9]*) region=${word##*:} word=${word%:*} ;;
        esac
        case $word in vfio-user:[!/]*) word=vfio-user:$PWD/${word#*:} ;; esac
        mounted "$word" | while read -r folder; do
            if [ "$region" ]; then printf '%s\n' "$folder/$region"; else printf '%s\n' "$folder"/*/; fi
        done
    fi
}

# What is in a FOLDER for the rest of TYPED, behind what stands BEFORE it.
names() {
    folder=$1 before=$2 rest=$3 sign=.
    case $typed in */*) sign=/ ;; esac
    while :; do
        case $rest in *[./]*) ;; *) break ;; esac
        block=${rest%%[./]*}
        [ -d "$folder/$block" ] || break
        folder=$folder/$block before=$before${rest%"${rest#"$block"?}"} rest=${rest#"$block"?}
    done
    timeout -s KILL 2 ls -1p "$folder" 2>/dev/null |
        awk -v before="$before" -v rest="$rest" -v sign="$sign" '
            index($0, rest) == 1 && (index(rest, ".") || !index($0, ".")) {
                sub("/$", sign)
                print before $0
            }'
}

for word; do
    case $word in -*) continue ;; esac
    found=$(folders "$word")
    [ "$found" ] || continue
    count=$(printf '%s\n' "$found" | wc -l)
    printf '%s\n' "$found" | while read -r folder; do
        [ -d "$folder" ] || continue
        folder=${folder%/} region=${folder%/}
        region=${region##*/}
        names "$folder" "" "$typed"
        [ "$count" -gt 1 ] || continue
        case $typed in "$region".*) names "$folder" "$region." "${typed#*.}" ;; esac
        case $region in "$typed"*) printf '%s.\n' "$region" ;; esac
    done | sort -u
    exit 0
done
