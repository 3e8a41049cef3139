#!/bin/sh
# Install Debian's packages that tests run for real, where they are missing: prometheus-pushgateway, prometheus with its
# promtool, and chromium.
# Idempotent; installing needs root, and a source for apt.
set -eu
missing=""
command -v prometheus-pushgateway >/dev/null 2>&1 || missing="$missing prometheus-pushgateway"
{ command -v promtool && command -v prometheus; } >/dev/null 2>&1 || missing="$missing prometheus"
[ -x /usr/bin/chromium ] || missing="$missing chromium"
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
  echo "missing:$missing; this is no Debian: put their binaries on PATH, prometheus-pushgateway, prometheus and promtool, and a Chromium at /usr/bin/chromium" >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "missing:$missing; run as root: apt-get install --no-install-recommends$missing" >&2
  exit 1
fi
echo "installing$missing ..."
export DEBIAN_FRONTEND=noninteractive
# A service that starts by itself would take a port that it has no business with.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
