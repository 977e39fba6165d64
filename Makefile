# make demo     drive the simulated car; sets up .venv first, ROS 2 included if there is none
# make train    train the car's policy (installs torch)
# make test     ruff, mypy and all tests
# make lint     ruff and mypy
# make bench    the compiled core beside torch, ncps and numpy; counts instructions
# make fuzz     FUZZ_SECONDS (60) each of hostile sizes, images, policies and messages; needs clang
# make wheel    build dist/*.whl, compiled core included
# make clean    remove .venv and everything built
# PYTHON=...  the Python for .venv (3.10-3.13)      TORCH=...  which torch to install
# CORE=numpy  as on a machine without a C compiler, in .venv-numpy

VENV ?= $(if $(CORE),.venv-$(CORE),.venv)
PYTHON ?= $(if $(ROS_DISTRO),python3,python3.11 python3.12 python3.10 python3.13 python3)
TORCH ?= torch==2.13.0

FUZZ_SECONDS ?= 60

# Nodes started from here talk to this machine only; the default would multicast on the network.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST

ifneq ($(filter-out numpy,$(CORE)),)
  $(error CORE is '$(CORE)', but it may only be numpy, or not be set)
endif
ifdef CORE
  export CC := no-compiler
endif

# With a ROS 2 sourced, .venv sees its rclpy; otherwise rclpy comes from PyPI.
comma := ,
ros := $(if $(ROS_DISTRO),,ros$(comma))
# Directories too: their times tell of removed files.
sources := setup.py setup.cfg package.xml \
  $(shell find lnn_ros resource $(wildcard launch config policies) \
    -not -name '__pycache__' -not -name '*.pyc')

venv := $(VENV)/.created
sim := $(VENV)/.installed-sim
train := $(VENV)/.installed-train
dev := $(VENV)/.installed-train,dev

.SILENT:
.PHONY: help demo train test lint bench fuzz wheel clean egl core

help:
	sed -n '/^# /!q; s/^# //p' Makefile

demo: egl $(sim)
	$(VENV)/bin/lnn_ros demo

train: egl $(train)
	$(VENV)/bin/lnn_ros train car

test: egl lint core
	$(VENV)/bin/pytest

lint: $(dev)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy

bench: $(dev)
	$(VENV)/bin/lnn_ros bench core

fuzz := build/fuzz
core_sources = $(VENV)/bin/python -c "import runpy; print(*('lnn_ros/core/' + name \
  for name in runpy.run_path('lnn_ros/core/build.py')['SOURCES']))"

# What was found is kept in build/fuzz: a next run starts from it.
fuzz: core
	mkdir -p $(fuzz)/core $(fuzz)/policy
	command -v clang >/dev/null || { echo 'apt-get install clang libclang-rt-14-dev' >&2; exit 1; }
	clang -std=c99 -D_POSIX_C_SOURCE=200112L -D__SANITIZE_ADDRESS__ -O1 -g -Ilnn_ros/core \
	  -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all test/fuzz/core_fuzzer.c \
	  $$($(core_sources)) -lm -o $(fuzz)/core_fuzzer
	$(VENV)/bin/python -c 'import atheris' 2>/dev/null || { $(call pip,atheris); }
	cd $(fuzz) && ./core_fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
	  -print_final_stats=1 core
	cd $(fuzz) && '$(abspath $(VENV))'/bin/python ../../test/fuzz/policy_fuzzer.py \
	  -max_total_time=$(FUZZ_SECONDS) -max_len=512 -len_control=0 -print_final_stats=1 policy

# A core that silently failed to build must not pass as tests that are skipped.
core: $(dev)
ifdef CORE
	! ($(has_core)) || { echo 'CORE=$(CORE), but $(VENV) has the C core: make clean' >&2; exit 1; }
else
	$(has_core) || { echo '$(no_core)' >&2; exit 1; }
endif

wheel: | $(venv)
	rm -rf build/lib* build/bdist*
	$(VENV)/bin/python -m pip wheel --no-deps --no-build-isolation -w dist .

clean:
	rm -rf .venv-numpy $(VENV) build dist lnn_ros.egg-info .mypy_cache .pytest_cache .ruff_cache
	find lnn_ros test -name __pycache__ -exec rm -r {} +

egl: | $(venv)
	$(VENV)/bin/python -c 'from ctypes import CDLL; CDLL("libEGL.so.1"), CDLL("libOpenGL.so.0")' \
	  2>/dev/null || { echo 'no EGL library, which the simulated camera needs: apt-get install' \
	  'libegl1 libgl1-mesa-dri libopengl0' >&2; exit 1; }

# pip's output is shown only if it fails.
pip = $(VENV)/bin/python -m pip --disable-pip-version-check install $(1) >$(VENV)/pip.log 2>&1 \
  || { cat $(VENV)/pip.log >&2; exit 1; }

# Without it numpy does the core's work, and the tests of the core are skipped. Not from here: python -c would find
# the checkout's lnn_ros first.
has_core = cd / && '$(abspath $(VENV))'/bin/python -c 'import lnn_ros.core._core' 2>/dev/null
no_core := the C core was not built: apt-get install gcc python3-dev, then make clean

# Not editable: that would leave out share/ and lib/lnn_ros. Nothing is fetched when only our own
# sources changed. build/lib would bring back modules that were removed since.
$(VENV)/.installed-%: $(sources) | $(venv)
	echo 'installing lnn_ros[$(ros)$*] into $(VENV)$(if $(wildcard $@),,$(comma) about a minute) ...'
	rm -rf build/lib* build/bdist*
	$(call pip,--no-build-isolation $(if $(findstring train,$*),'$(TORCH)') '.[$(ros)$*]')
	$(if $(CORE),,($(has_core)) || \
	  echo '$(no_core) (until then numpy does its work, slower)' >&2)
	touch '$@'

$(venv):
	case $$(uname -m)-$(ROS_DISTRO) in x86_64-* | *-?*) ;; *) \
	  echo "no ROS 2 wheels for $$(uname -m): install ROS 2 and source its setup.bash" >&2; exit 1;; \
	esac
	python= found=; for p in $(PYTHON); do \
	  v=$$($$p -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  case $$v in 3.10 | 3.11 | 3.12 | 3.13) ;; *) found="$$found $$p is $$v;"; continue;; esac; \
	  $$p -c 'import ensurepip' 2>/dev/null && python=$$p && break; \
	  found="$$found $$p lacks python$$v-venv;"; \
	done; \
	[ "$$python" ] || { echo "no usable Python 3.10-3.13 (tried $(PYTHON):$${found:- none found;})," \
	  "for example: apt-get install python3.11 python3.11-venv" >&2; exit 1; }; \
	echo "creating $(VENV) with $$python ..."; \
	$$python -m venv $(if $(ROS_DISTRO),--system-site-packages) $(VENV)
	$(call pip,setuptools wheel)
ifdef ROS_DISTRO
	# Its launch_pytest is a plugin of every pytest, and breaks 8 and newer.
	$(call pip,--ignore-installed 'pytest<8')
endif
	touch $@
