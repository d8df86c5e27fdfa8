# vdelxc: what can be done here; "make" alone prints the list.

PREFIX = /usr/local
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
COMPLETIONDIR = $(PREFIX)/share/bash-completion/completions
DESTDIR =

PYTHON ?= python3
VENV = .venv
ARGS =

# The one list of the Debian packages that the tests use.
TOOLS = busybox-static ethtool iperf3 iproute2 iputils-ping libcap2-bin libvdeplug-agno \
	libvdeplug-pcap libvdeplug-slirp libvdeplug-vlan lxc make mandoc mount procps \
	python3-minimal python3-venv tcpdump uidmap util-linux vde-switch vdeplug

MAN = $(wildcard man/*.1 man/*.7)
COMPLETED = vdelxcc vdelxcd
ZIPAPP = vdelxc.pyz
PYTEST = -m pytest -p no:cacheprovider --strict-markers -rs

export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help demo test test-tools test-pythons coverage bench install uninstall zipapp clean

help: ## print this list
	@echo 'make TARGET, one of:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1 \2/p' $(firstword $(MAKEFILE_LIST)) | \
		while read -r target what; do printf '  %-12s  %s\n' "$$target" "$$what"; done
	@echo 'Variables, as in "make install PREFIX=/usr":'
	@echo '  PREFIX DESTDIR  where install copies to'
	@echo '  ARGS            more arguments for pytest'
	@echo '  JOBS            how many runs of pytest share the suite'
	@echo '  VDELXC_PYTHON   the interpreter of the two scripts in demo and tests'
	@echo '  PYTHON          the interpreter of all the rest'

demo: ## two containers, one daemon, a ping; as root or not, and nothing is left behind
	@sh tests/demo.sh


# ---- tests ---------------------------------------------------------------------------------------

# Two at a time, for most of them wait most of the time; one where somebody has a closer look.
JOBS = $(if $(ARGS),1,2)

# In a user namespace we are root enough for most tests, whoever we are. The name stays, for it is
# part of the name of pytest's directory, and that of the real root is taken.
AS_ROOT = $(shell test "$$(id -u)" = 0 || ! unshare --map-root-user --mount true 2> /dev/null || \
	echo unshare --map-root-user --mount env LOGNAME="$$(id -un 2> /dev/null)")

test: $(VENV)/made ## all tests that this machine allows; says what was skipped and how to get it
	@PYTEST='$(PYTEST)' AS_ROOT='$(AS_ROOT)' sh tests/jobs.sh $(VENV) $(JOBS) $(ARGS)

test-tools: ## install what the tests use (Debian, as root)
	@missing=; for package in $(TOOLS); do \
		dpkg-query -W -f '$${Status}' $$package 2> /dev/null | grep -q ' installed$$' || \
			missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then echo 'test-tools: all are installed'; exit; fi; \
	echo "test-tools: to be installed:$$missing"; \
	if [ "$$(id -u)" != 0 ]; then echo 'test-tools: run this as root' >&2; exit 1; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -q && apt-get install -q -y --no-install-recommends $$missing

test-pythons: ## the core of the tests under every interpreter from 3.6 up
	@PYTEST='$(PYTEST)' AS_ROOT='$(AS_ROOT)' sh tests/pythons.sh $(ARGS)

coverage: $(VENV)/made ## all tests, then which lines of the two scripts they ran; 95 % must
	@PYTEST='$(PYTEST)' AS_ROOT='$(AS_ROOT)' sh tests/coverage.sh $(VENV) $(ARGS)

bench: $(VENV)/made ## how fast, against vde_plug (needs root); ARGS: see tests/bench.py -h
	@$(VENV)/bin/python tests/bench.py $(ARGS)

$(VENV)/made: tests/requirements.txt
	@PYTHON='$(PYTHON)' sh tests/venv.sh $(VENV)


# ---- installing ----------------------------------------------------------------------------------

install: ## copy programs, manual pages and completions to PREFIX
	install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(MANDIR)/man1' '$(DESTDIR)$(MANDIR)/man7' \
		'$(DESTDIR)$(COMPLETIONDIR)'
	install -m 755 vdelxcc.py '$(DESTDIR)$(BINDIR)/vdelxcc'
	install -m 755 vdelxcd.py '$(DESTDIR)$(BINDIR)/vdelxcd'
	for page in $(MAN); do \
		install -m 644 $$page '$(DESTDIR)$(MANDIR)'/man$${page##*.}/ || exit; \
	done
	for program in $(COMPLETED); do \
		file='$(DESTDIR)$(COMPLETIONDIR)'/$$program; \
		$(PYTHON) $$program.py --completion bash > "$$file" && chmod 644 "$$file" || exit; \
	done

uninstall: ## remove what install copied
	rm -f '$(DESTDIR)$(BINDIR)/vdelxcc' '$(DESTDIR)$(BINDIR)/vdelxcd'
	for page in $(MAN); do \
		rm -f '$(DESTDIR)$(MANDIR)'/man$${page##*.}/$${page##*/} || exit; \
	done
	for program in $(COMPLETED); do \
		rm -f '$(DESTDIR)$(COMPLETIONDIR)'/$$program || exit; \
	done

# Which of the two programs vdelxc.pyz is.
define ZIPAPP_MAIN
"""vdelxcc and vdelxcd in one file: chosen by the name it is called under or the first argument."""
import os
import sys

PROGRAMS = {'client': 'vdelxcc', 'daemon': 'vdelxcd'}
program = os.path.basename(sys.argv[0]).split('.')[0]
if program not in PROGRAMS.values():
    program = PROGRAMS.get(sys.argv.pop(1)) if len(sys.argv) > 1 else None
if program is None:
    sys.exit('Usage: vdelxc.pyz client|daemon [ARGUMENT]... (or call it vdelxcc or vdelxcd)')
sys.exit(__import__(program).main(sys.argv[1:]))
endef

# Stored, not compressed: a minimal Python may have no zlib, and every zlib compresses differently.
# Order, dates and modes are fixed, so that the same scripts always give the same bytes.
define ZIPAPP_BUILD
import io
import os
import zipfile

content = {'__main__.py': os.environ['ZIPAPP_MAIN'].encode() + b'\n'}
for name in 'vdelxcc.py', 'vdelxcd.py':
    with open(name, 'rb') as script:
        content[name] = script.read()
archive = io.BytesIO(b'#!/usr/bin/env python3\n')
archive.seek(0, io.SEEK_END)
with zipfile.ZipFile(archive, 'w', zipfile.ZIP_STORED) as members:
    for name in sorted(content):
        member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        member.create_system = 3            # UNIX
        member.external_attr = 0o100644 << 16
        members.writestr(member, content[name])
target = os.environ['ZIPAPP']
with open(target + '.new', 'wb') as file:
    file.write(archive.getvalue())
os.chmod(target + '.new', 0o755)
os.rename(target + '.new', target)
endef

zipapp: export ZIPAPP_MAIN := $(ZIPAPP_MAIN)
zipapp: export ZIPAPP_BUILD := $(ZIPAPP_BUILD)
zipapp: export ZIPAPP := $(ZIPAPP)
zipapp: ## make vdelxc.pyz: both programs in one file, the same bytes everywhere
	@$(PYTHON) -c "$$ZIPAPP_BUILD"

clean: ## remove what was made here
	rm -rf .venv .venv-* .pytest_cache .coverage .coverage.* $(ZIPAPP) $(ZIPAPP).new bench.json
	find . -name __pycache__ -prune -exec rm -r {} +
