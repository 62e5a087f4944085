#!/bin/sh
# What the tests on Apache Kafka need of the system: Java 17 or newer, and Maven (once, for the jars).
# Does nothing where both are there. Installs them as root on CI; tells anyone else what to install.
set -eu

missing=""
java_version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1) || java_version=""
[ "${java_version:-0}" -ge 17 ] || missing="java"
command -v mvn >/dev/null 2>&1 || missing="$missing mvn"
[ -n "$missing" ] || exit 0

# The oldest release that does: newer Debian and Ubuntu no longer have 17, and Ubuntu's default may be 11.
java_package() {
    for version in 17 21 25; do
        if apt-cache show "openjdk-$version-jre-headless" >/dev/null 2>&1; then
            echo "openjdk-$version-jre-headless"
            return
        fi
    done
    echo "default-jre-headless"
}

if ! command -v apt-get >/dev/null 2>&1; then
    echo "tests/integration: missing:$missing. Install a Java runtime (17 or newer) and Maven." >&2
    exit 1
fi
if [ "${CI:-}" != "true" ] || [ "$(id -u)" -ne 0 ]; then
    echo "tests/integration: missing:$missing. Run: sudo apt-get install --no-install-recommends $(java_package) maven" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# Java alone where Maven is there: a Maven from elsewhere stays the one in use.
packages=$(java_package)
case $missing in *mvn*) packages="$packages maven" ;; esac
# shellcheck disable=SC2086 # a list of packages
apt-get install -q -y --no-install-recommends $packages
