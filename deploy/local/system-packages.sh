#!/bin/sh
# Installs the Debian packages that are missing, and only those.
#
#   system-packages.sh demo   what a federation on one machine needs
#   system-packages.sh test   that, and what the tests compare and connect with
#
# Nothing is started: Hansa and its tests start private instances themselves.
set -eu

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

has() { command -v "$1" >/dev/null 2>&1; }
has_postgres() { has postgres || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; }

missing=""
need() { missing="$missing $1"; }

has bwrap || need bubblewrap
has redis-server || need redis-server
has setpriv || need util-linux
{ has bgzip && has tabix; } || need tabix
if [ "${1:-demo}" = test ]; then
    has bcftools || need bcftools
    has plink2 || need plink2
    has_postgres || need postgresql
    has rabbitmq-server || need rabbitmq-server
    has ip || need iproute2
fi
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if has sudo && sudo -n true 2>/dev/null; then
        as_root="sudo"
    else
        echo "Debian packages are missing:$missing" >&2
        echo "You are not root; ask for: apt-get install --no-install-recommends$missing" >&2
        exit 1
    fi
fi
if ! has apt-get; then
    echo "These programs' packages are missing, and there is no apt-get to install them:$missing" >&2
    exit 1
fi

# A package's own service must not start. policy-rc.d is how Debian asks; what
# stood there before is put back, whatever happens.
policy=/usr/sbin/policy-rc.d
saved="$policy.before-hansa"
restore() {
    if [ -e "$saved" ]; then $as_root mv "$saved" "$policy"; else $as_root rm -f "$policy"; fi
}
[ -e "$saved" ] || { [ ! -e "$policy" ] || $as_root mv "$policy" "$saved"; }
trap restore EXIT
trap 'exit 130' INT TERM
printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
$as_root chmod 0755 "$policy"

echo "Installing Debian packages:$missing"
log="$(mktemp)"
# shellcheck disable=SC2086  # a list of words is meant
if ! {
    $as_root apt-get -qq -o DPkg::Lock::Timeout=300 update &&
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
            -o Dpkg::Use-Pty=0 install --no-install-recommends $missing
} >"$log" 2>&1; then
    cat "$log" >&2
    echo "The packages could not be installed:$missing" >&2
    rm -f "$log"
    exit 1
fi
rm -f "$log"
