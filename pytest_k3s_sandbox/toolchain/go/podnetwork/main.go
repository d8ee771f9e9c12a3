// Command k3s-sandbox-network is a CNI plugin that gives pods a routed network: host-local's addresses, and a
// veth pair to the node for each pod.
//
// Nothing is bridged. So all packets between pods pass the node's IP layer, where the rules of Services and
// of network policies see them. gVisor has neither hairpin ports nor filters on a bridge.
package main

import (
	"errors"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	protocol "github.com/containernetworking/cni/pkg/version"
)

// version is that of the module with host-local, set by the linker.
var version = "unknown"

// The codes of errors: CNI specification 1.1.0, section 2, "STATUS"; those from 100 on are ours.
const (
	unavailable     = 50
	exhausted       = 100
	alreadyAttached = 101
	notAsAdded      = 102
)

const forwarding = "/proc/sys/net/ipv4/ip_forward"

func main() {
	commands := skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
	skel.PluginMainFuncs(commands, protocol.All, "CNI k3s-sandbox-network plugin v"+version)
}

func failed(code uint, what, why string) error { return types.NewError(code, what, why) }

// add attaches a pod, and undoes what it did when a step fails.
func add(args *skel.CmdArgs) (err error) {
	config, err := load(args)
	if err != nil {
		return err
	}
	result, err := config.previous()
	if err != nil {
		return err
	}
	pair, err := newPair(args)
	if err != nil {
		return err
	}
	defer pair.close()
	pool, err := open(config)
	if err != nil {
		return err
	}
	defer pool.Close()
	ips, err := pool.reserve(args.ContainerID, args.IfName)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(pair.hostName), pool.release(args.ContainerID, args.IfName))
		}
	}()
	ends, err := pair.make(config, ips)
	if err != nil {
		return err
	}
	result.Interfaces = append(result.Interfaces, ends...)
	for _, ip := range ips {
		ip.Interface = current.Int(len(result.Interfaces) - 1)
	}
	result.IPs = append(result.IPs, ips...)
	result.Routes = append(result.Routes, config.routes()...)
	if !config.DNS.IsEmpty() {
		result.DNS = config.DNS
	}
	return types.PrintResult(result, config.CNIVersion)
}

// del detaches a pod, whatever there is left of it.
func del(args *skel.CmdArgs) error {
	config, err := load(args)
	if err != nil {
		return err
	}
	// First: the next holder of the address must not meet the route of this one.
	if err := remove(hostEnd(args.ContainerID, args.IfName)); err != nil {
		return err
	}
	pool, err := open(config)
	if err != nil {
		return err
	}
	defer pool.Close()
	return pool.release(args.ContainerID, args.IfName)
}

// check compares what a pod has with what add said.
func check(args *skel.CmdArgs) error {
	config, err := load(args)
	if err != nil {
		return err
	}
	if config.RawPrevResult == nil {
		return failed(types.ErrInvalidNetworkConfig, "CHECK needs prevResult", "")
	}
	result, err := config.previous()
	if err != nil {
		return err
	}
	pool, err := open(config)
	if err != nil {
		return err
	}
	defer pool.Close()
	if len(pool.GetByID(args.ContainerID, args.IfName)) == 0 {
		return failed(notAsAdded, "no address is reserved for the container", args.ContainerID)
	}
	pair, err := newPair(args)
	if err != nil {
		return err
	}
	defer pair.close()
	if err := pair.compare(config, result); err != nil {
		return failed(notAsAdded, "the network of the container is not as it was made", err.Error())
	}
	return nil
}

// gc removes the addresses and the interfaces of all that the runtime does not name.
func gc(args *skel.CmdArgs) error {
	config, err := load(args)
	if err != nil {
		return err
	}
	pool, err := open(config)
	if err != nil {
		return err
	}
	defer pool.Close()
	valid := map[string]bool{}
	for _, each := range config.ValidAttachments {
		valid[hostEnd(each.ContainerID, each.IfName)] = true
	}
	if err := pool.collect(valid, remove); err != nil {
		return err
	}
	return removeOthers(valid, config.ipam.Ranges)
}

// status says whether a pod could be attached now.
func status(args *skel.CmdArgs) error {
	config, err := load(args)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(forwarding)
	if err != nil {
		return failed(unavailable, "the node does not say whether it forwards packets", err.Error())
	}
	if value := strings.TrimSpace(string(text)); value != "1" {
		return failed(unavailable, "the node does not forward packets", forwarding+" is "+value)
	}
	pool, err := open(config)
	if err != nil {
		return err
	}
	defer pool.Close()
	return pool.hasFree()
}
