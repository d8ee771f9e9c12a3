// Command cadvisor is google/cadvisor's manager and metrics, alone: the same packages that the
// kubelet has, at the same version. The command of that project is a module of its own, which
// the module proxy does not have; this is as little of it as reads cgroups and serves metrics.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/cadvisor/cache/memory"
	"github.com/google/cadvisor/container"
	v2 "github.com/google/cadvisor/info/v2"
	"github.com/google/cadvisor/manager"
	"github.com/google/cadvisor/metrics"
	"github.com/google/cadvisor/utils/sysfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// version is that of the module, set by the linker.
var version = "unknown"

func main() {
	address := flag.String("listen", "127.0.0.1:8080", "where metrics are served")
	show := flag.Bool("version", false, "say the version")
	klog.InitFlags(nil)
	flag.Parse()
	if *show {
		fmt.Printf("cadvisor version v%s\n", version)
		return
	}
	if err := serve(*address); err != nil {
		klog.Fatal(err)
	}
}

func serve(address string) error {
	// Everything that comes from cgroups; what needs other subsystems is off, as in the kubelet.
	included := container.MetricSet{
		container.CpuUsageMetrics: {}, container.MemoryUsageMetrics: {}, container.CpuLoadMetrics: {},
		container.DiskIOMetrics: {}, container.ProcessMetrics: {}, container.CPUSetMetrics: {},
		container.HugetlbUsageMetrics: {}, container.MemoryNumaMetrics: {}, container.PerCpuUsageMetrics: {},
	}
	m, err := manager.New(
		memory.New(2*time.Minute, nil), sysfs.NewRealSysFs(), manager.HousekeepingConfigFlags, included, http.DefaultClient,
		[]string{"/"}, nil, "", 0,
	)
	if err != nil {
		return err
	}
	if err := m.Start(); err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	all := v2.RequestOptions{IdType: v2.TypeName, Count: 1, Recursive: true}
	registry.MustRegister(
		metrics.NewPrometheusCollector(m, nil, included, clock.RealClock{}, all),
		metrics.NewPrometheusMachineCollector(m, included),
	)
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	failed := make(chan error, 1)
	go func() { failed <- http.ListenAndServe(address, nil) }()
	klog.Infof("serving on %s", address)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-failed:
		return err
	case <-end:
		return m.Stop()
	}
}
