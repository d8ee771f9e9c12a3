package main

import (
	"encoding/json"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	protocol "github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
)

// config is the network's configuration; ipam has the fields of host-local, and with them the addresses that
// the runtime asks for (runtimeConfig and CNI_ARGS).
type config struct {
	types.PluginConf
	Gateway net.IP `json:"gateway"`
	MTU     int    `json:"mtu"`
	// NodeAddresses are those of the node that pods have to reach besides the gateway, in gVisor. Its answers from
	// an address leave by the interface that has the address, if any route of that interface fits, and a default
	// route fits always. With these addresses on the node's ends of pairs, too, the answers find the pods.
	NodeAddresses []net.IP `json:"nodeAddresses"`
	ipam          *allocator.IPAMConfig
}

func invalid(what, why string) error { return failed(types.ErrInvalidNetworkConfig, what, why) }

func load(args *skel.CmdArgs) (*config, error) {
	c := &config{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, failed(types.ErrDecodingFailure, "the configuration cannot be read", err.Error())
	}
	// A second family would take its gateways from its ranges.
	gateway := c.Gateway.To4()
	if gateway == nil {
		return nil, invalid("gateway is not an IPv4 address", fmt.Sprintf("it is %q", c.Gateway))
	}
	for _, ip := range c.NodeAddresses {
		if ip.To4() == nil {
			return nil, invalid("nodeAddresses has what is not an IPv4 address", fmt.Sprintf("it is %q", ip))
		}
	}
	if c.MTU < 0 {
		return nil, invalid("mtu is negative", fmt.Sprintf("it is %d", c.MTU))
	}
	ipam, _, err := allocator.LoadIPAMConfig(args.StdinData, args.Args)
	if err != nil {
		return nil, invalid("ipam is not as host-local has it", err.Error())
	}
	for _, set := range ipam.Ranges {
		for i := range set {
			if set[i].RangeStart.To4() == nil {
				return nil, invalid("only IPv4 has a network here", set[i].String())
			}
			set[i].Gateway = gateway
		}
	}
	c.ipam = ipam
	return c, nil
}

// previous returns the result of the plugin before this one in a chain; an empty one for the first.
func (c *config) previous() (*current.Result, error) {
	if c.RawPrevResult == nil {
		return &current.Result{CNIVersion: current.ImplementedSpecVersion}, nil
	}
	if err := protocol.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, invalid("prevResult cannot be read", err.Error())
	}
	result, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, invalid("prevResult cannot be converted", err.Error())
	}
	return result, nil
}

// hostAddresses returns those of the node's end of a pair with a gateway.
func (c *config) hostAddresses(gateway net.IP) []net.IPNet {
	addresses := []net.IPNet{single(gateway)}
	for _, ip := range c.NodeAddresses {
		if !ip.Equal(gateway) {
			addresses = append(addresses, single(ip))
		}
	}
	return addresses
}

// routes returns those of a pod besides the one to the gateway: by default, everything is behind the gateway.
func (c *config) routes() []*types.Route {
	if len(c.ipam.Routes) == 0 {
		everything := net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 8*net.IPv4len)}
		return []*types.Route{{Dst: everything, GW: c.Gateway.To4()}}
	}
	routes := []*types.Route{}
	for _, given := range c.ipam.Routes {
		route := given.Copy()
		if route.GW == nil {
			route.GW = c.Gateway.To4()
		}
		routes = append(routes, route)
	}
	return routes
}
