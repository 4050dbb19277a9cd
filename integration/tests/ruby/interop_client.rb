# Runs gRPC's own interoperability client with the :authority that its first argument names, which the client has no option
# for: sidecars find the destination by it. `interop_client.rb AUTHORITY CLIENT [OPTION...]`
require 'grpc'

module WithAuthority
  AUTHORITY = ARGV.shift

  def initialize(host, creds, channel_args: {}, **options)
    channel_args = channel_args.merge('grpc.default_authority' => AUTHORITY) unless AUTHORITY == '-'
    super(host, creds, channel_args: channel_args, **options)
  end
end

GRPC::ClientStub.prepend(WithAuthority)
# The client runs when it is the program.
$PROGRAM_NAME = ARGV.shift
load $PROGRAM_NAME
